// fp8_round on CUDA: a block's values stay in registers between its largest one and their rounding,
// so each is read and written once. Bound by memory.
//
// Blocks along rows belong to a warp, four values a lane. Blocks down columns are computed 64
// columns at a time by 256 threads, each with four columns of every 16th row; squares likewise, 32
// threads across. Four values are loaded and stored at once where they lie on whole such words.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/fp8_round/fp8_round_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256, kEach = 4, kBlock = 128;
constexpr int kAcrossDown = 16, kColumns = kAcrossDown * kEach;  // kDown: threads and columns
constexpr int kRowsDown = kThreads / kAcrossDown;
constexpr int kRowsSquare = kThreads / (kBlock / kEach);

using Args = Fp8RoundArgs<float>;

__device__ inline float scale_of(float largest, bool weight) {
  if (weight) return ceil_power_of_two(fmaxf(largest, kLeastWeight) / kFp8Largest);
  return fmaxf(ceil_power_of_two(largest * (1.0f / kFp8Largest)), kLeastFp8Scale);
}

// Where four neighbours may be moved at once.
template <bool kBf16>
__device__ inline bool on_words(const void* p, int64_t stride, int64_t width) {
  constexpr uintptr_t kWord = kBf16 ? sizeof(uint2) : sizeof(float4);
  return width % kEach == 0 && stride % kEach == 0 && reinterpret_cast<uintptr_t>(p) % kWord == 0;
}

// Four values of a row from column c on, zeros past its width.
template <bool kBf16>
__device__ inline float4 load(const Args& a, bool words, int64_t row, int64_t c) {
  if (c >= a.width) return make_float4(0, 0, 0, 0);
  const int64_t at = row * a.x_stride + c;
  if (words) {
    if constexpr (kBf16) {
      const uint2 v = *reinterpret_cast<const uint2*>(a.x_bf16 + at);
      return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000u),
                         __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xFFFF0000u));
    } else {
      return *reinterpret_cast<const float4*>(a.x + at);
    }
  }
  const auto one = [&](int e) -> float {
    if (c + e >= a.width) return 0;
    return kBf16 ? bf16_bits_to_float(a.x_bf16[at + e]) : a.x[at + e];
  };
  return make_float4(one(0), one(1), one(2), one(3));
}

__device__ inline float largest_of(const float4& v) {
  return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

__device__ inline float rounded(float x, float scale, float inverse) {
  return e4m3_bits_to_float(float_to_e4m3_bits(x * inverse)) * scale;
}

// The same four, rounded by their scales.
template <bool kBf16>
__device__ inline void store(const Args& a, bool words, int64_t row, int64_t c, const float4& v,
                             const float4& scale) {
  if (c >= a.width) return;
  // Scales are powers of two: dividing is multiplying, exactly.
  const float4 y =
      make_float4(rounded(v.x, scale.x, 1 / scale.x), rounded(v.y, scale.y, 1 / scale.y),
                  rounded(v.z, scale.z, 1 / scale.z), rounded(v.w, scale.w, 1 / scale.w));
  const int64_t at = row * a.width + c;
  if (words) {
    if constexpr (kBf16) {
      *reinterpret_cast<uint2*>(a.y_bf16 + at) =
          make_uint2(ptx::pack_bf16(y.x, y.y), ptx::pack_bf16(y.z, y.w));
    } else {
      *reinterpret_cast<float4*>(a.y + at) = y;
    }
    return;
  }
  const float values[kEach] = {y.x, y.y, y.z, y.w};
  for (int e = 0; e < kEach; ++e) {
    if (c + e >= a.width) return;
    if constexpr (kBf16) {
      a.y_bf16[at + e] = float_to_bf16_bits(values[e]);
    } else {
      a.y[at + e] = values[e];
    }
  }
}

template <bool kFrom, bool kTo>
struct Words {
  bool from, to;
  __device__ explicit Words(const Args& a)
      : from(
            on_words<kFrom>(kFrom ? static_cast<const void*>(a.x_bf16) : a.x, a.x_stride, a.width)),
        to(on_words<kTo>(kTo ? static_cast<const void*>(a.y_bf16) : a.y, a.width, a.width)) {}
};

__device__ inline float4 all(float x) { return make_float4(x, x, x, x); }

template <bool kFrom, bool kTo>
__global__ void __launch_bounds__(kThreads) round_across_kernel(const Args a) {
  const Words<kFrom, kTo> words(a);
  const int64_t across = (a.width + kBlock - 1) / kBlock, blocks = a.rows * across;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; i < blocks;
       i += warps) {
    const int64_t row = i / across, c = i % across * kBlock + lane * kEach;
    const float4 v = load<kFrom>(a, words.from, row, c);
    float largest = largest_of(v);
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, offset));
    }
    store<kTo>(a, words.to, row, c, v, all(scale_of(largest, false)));
  }
}

// The rows of block `index`, counted group by group. Every lane of a warp calls it. False past the
// last.
__device__ inline bool find_rows(const Args& a, int64_t index, int64_t& first, int64_t& last) {
  if (a.offsets == nullptr) {
    first = index * kBlock;
    last = min(first + kBlock, a.rows);
    return first < a.rows;
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t before = 0;
  for (int64_t g0 = 0; g0 < a.groups; g0 += 32) {
    const int64_t g = g0 + lane;
    const int64_t begin = g < a.groups ? a.offsets[g] : 0,
                  end = g < a.groups ? a.offsets[g + 1] : 0;
    const int64_t own = (end - begin + kBlock - 1) / kBlock;
    int64_t upto = own;  // blocks of the groups up to this one
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t other = __shfl_up_sync(0xFFFFFFFFu, upto, offset);
      if (lane >= offset) upto += other;
    }
    upto += before;
    const unsigned here = __ballot_sync(0xFFFFFFFFu, index < upto);
    if (here != 0) {
      const int source = __ffs(static_cast<int>(here)) - 1;
      const int64_t mine = begin + (index - (upto - own)) * kBlock;
      first = __shfl_sync(0xFFFFFFFFu, mine, source);
      last = __shfl_sync(0xFFFFFFFFu, min(mine + kBlock, end), source);
      return true;
    }
    before = __shfl_sync(0xFFFFFFFFu, upto, 31);
  }
  return false;
}

// blockIdx.x counts blocks of rows, blockIdx.y columns.
template <bool kFrom, bool kTo>
__global__ void __launch_bounds__(kThreads) round_down_kernel(const Args a) {
  __shared__ float4 part[kRowsDown][kAcrossDown];
  int64_t first = 0, last = 0;
  if (!find_rows(a, blockIdx.x, first, last)) return;
  const Words<kFrom, kTo> words(a);
  const int x = static_cast<int>(threadIdx.x) % kAcrossDown;
  const int y = static_cast<int>(threadIdx.x) / kAcrossDown;
  const int64_t c = int64_t{blockIdx.y} * kColumns + x * kEach;
  float4 v[kBlock / kRowsDown], top = all(0);
#pragma unroll
  for (int i = 0; i < kBlock / kRowsDown; ++i) {
    const int64_t row = first + y + i * kRowsDown;
    v[i] = row < last ? load<kFrom>(a, words.from, row, c) : all(0);
    top = make_float4(fmaxf(top.x, fabsf(v[i].x)), fmaxf(top.y, fabsf(v[i].y)),
                      fmaxf(top.z, fabsf(v[i].z)), fmaxf(top.w, fabsf(v[i].w)));
  }
  part[y][x] = top;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowsDown; ++i) {
    const float4 other = part[i][x];
    top = make_float4(fmaxf(top.x, other.x), fmaxf(top.y, other.y), fmaxf(top.z, other.z),
                      fmaxf(top.w, other.w));
  }
  const float4 scale = make_float4(scale_of(top.x, false), scale_of(top.y, false),
                                   scale_of(top.z, false), scale_of(top.w, false));
#pragma unroll
  for (int i = 0; i < kBlock / kRowsDown; ++i) {
    const int64_t row = first + y + i * kRowsDown;
    if (row < last) store<kTo>(a, words.to, row, c, v[i], scale);
  }
}

// blockIdx: across, down, the matrix.
template <bool kTo>
__global__ void __launch_bounds__(kThreads) round_square_kernel(Args a) {
  a.x += blockIdx.z * a.group_stride;
  if constexpr (kTo) {
    a.y_bf16 += blockIdx.z * a.rows * a.width;
  } else {
    a.y += blockIdx.z * a.rows * a.width;
  }
  const Words<false, kTo> words(a);
  const int x = static_cast<int>(threadIdx.x) % (kBlock / kEach);
  const int y = static_cast<int>(threadIdx.x) / (kBlock / kEach);
  const int64_t c = int64_t{blockIdx.x} * kBlock + x * kEach;
  const int64_t first = int64_t{blockIdx.y} * kBlock + y;
  float4 v[kBlock / kRowsSquare];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kBlock / kRowsSquare; ++i) {
    const int64_t row = first + i * kRowsSquare;
    v[i] = row < a.rows ? load<false>(a, words.from, row, c) : all(0);
    largest = fmaxf(largest, largest_of(v[i]));
  }
  const float scale = scale_of(block_max<kThreads>(largest), true);
#pragma unroll
  for (int i = 0; i < kBlock / kRowsSquare; ++i) {
    const int64_t row = first + i * kRowsSquare;
    if (row < a.rows) store<kTo>(a, words.to, row, c, v[i], all(scale));
  }
}

int64_t tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

template <bool kFrom, bool kTo>
void launch(KernelContext& context, const Args& a) {
  if (a.blocks == Fp8Blocks::kAcross) {
    constexpr int64_t kMostBlocks = 1 << 16;  // a warp goes on with later blocks
    const int64_t warps = a.rows * tiles(a.width, kBlock);
    const auto grid = static_cast<unsigned>(std::min(kMostBlocks, tiles(warps, kThreads / 32)));
    round_across_kernel<kFrom, kTo><<<grid, kThreads, 0, stream_of(context)>>>(a);
  } else {
    // Each group may end with part of a block.
    const int64_t down = tiles(a.rows, kBlock) + (a.offsets == nullptr ? 0 : a.groups);
    const dim3 grid(static_cast<unsigned>(down), static_cast<unsigned>(tiles(a.width, kColumns)));
    round_down_kernel<kFrom, kTo><<<grid, kThreads, 0, stream_of(context)>>>(a);
  }
  check_launch("fp8_round");
}

template <bool kTo>
void launch_square(KernelContext& context, const Args& a) {
  const dim3 grid(static_cast<unsigned>(tiles(a.width, kBlock)),
                  static_cast<unsigned>(tiles(a.rows, kBlock)), static_cast<unsigned>(a.groups));
  round_square_kernel<kTo><<<grid, kThreads, 0, stream_of(context)>>>(a);
  check_launch("fp8_round");
}

}  // namespace

void fp8_round_cuda(KernelContext& context, const Args& a) {
  if (a.rows == 0 || a.width == 0 || a.groups == 0) return;
  const bool from = a.x_bf16 != nullptr, to = a.y_bf16 != nullptr;
  if (a.blocks == Fp8Blocks::kSquare) {
    if (from) throw UsageError("fp8_round: weights are float32");
    return to ? launch_square<true>(context, a) : launch_square<false>(context, a);
  }
  if (from) return to ? launch<true, true>(context, a) : launch<true, false>(context, a);
  to ? launch<false, true>(context, a) : launch<false, false>(context, a);
}

}  // namespace tamis
