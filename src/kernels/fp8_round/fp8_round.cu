// fp8_round on CUDA: a block's values stay in registers between its largest one and their rounding,
// so each is read and written once. Bound by memory.
//
// Blocks along rows belong to a warp, four values a lane. Blocks down columns are computed 64
// columns at a time by 256 threads, each with four columns of every 16th row; squares likewise, 32
// threads across. Four values are loaded and stored at once where they lie on whole such words.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/fp8_round/fp8_blocks.cuh"

namespace tamis {
namespace {

using namespace fp8;

constexpr int kAcrossDown = 16, kColumns = kAcrossDown * kEach;  // kDown: threads and columns
constexpr int kRowsDown = kThreads / kAcrossDown;

using Args = Fp8RoundArgs<float>;

__device__ inline Source source_of(const Args& a) { return {a.x, a.x_bf16, a.x_stride, a.width}; }

__device__ inline float rounded(float x, float scale) {
  return e4m3_bits_to_float(code_of(x, 1 / scale)) * scale;
}

// The same four, rounded by their scales.
template <bool kBf16>
__device__ inline void store(const Args& a, bool words, int64_t row, int64_t c, const float4& v,
                             const float4& scale) {
  if (c >= a.width) return;
  const float4 y = make_float4(rounded(v.x, scale.x), rounded(v.y, scale.y), rounded(v.z, scale.z),
                               rounded(v.w, scale.w));
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

template <bool kFrom, bool kTo>
__global__ void __launch_bounds__(kThreads) round_across_kernel(const Args a) {
  const Words<kFrom, kTo> words(a);
  const int64_t across = (a.width + kBlock - 1) / kBlock, blocks = a.rows * across;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; i < blocks;
       i += warps) {
    const int64_t row = i / across, c = i % across * kBlock + lane * kEach;
    const float4 v = load<kFrom>(source_of(a), words.from, row, c);
    const float largest = warp_largest(largest_of(v));
    store<kTo>(a, words.to, row, c, v, all(scale_of(largest, false)));
  }
}

// The rows of block `index`, counted group by group. Every lane of a warp calls it. False past the
// last.
__device__ inline bool find_rows(const Args& a, int64_t index, int64_t& first, int64_t& last) {
  GroupPart part{};
  if (!find_part(a.offsets, a.groups, a.rows, kBlock, index, part)) return false;
  first = part.begin + part.part * kBlock;
  last = min(first + kBlock, part.end);
  return true;
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
    v[i] = row < last ? load<kFrom>(source_of(a), words.from, row, c) : all(0);
    top = largest_each(top, v[i]);
  }
  part[y][x] = top;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowsDown; ++i) top = largest_each(top, part[i][x]);
  const float4 scale = scales_of(top);
#pragma unroll
  for (int i = 0; i < kBlock / kRowsDown; ++i) {
    const int64_t row = first + y + i * kRowsDown;
    if (row < last) store<kTo>(a, words.to, row, c, v[i], scale);
  }
}

// Both kinds from one tile of 128 x 128: a warp has whole rows of it, kRowsAtOnce apart. blockIdx.x
// counts blocks of rows, blockIdx.y of columns.
template <bool kFrom, bool kTo>
__global__ void __launch_bounds__(kThreads) round_both_kernel(const Args a) {
  __shared__ float4 part[kRowsAtOnce][kBlock / kEach];
  int64_t first = 0, last = 0;
  if (!find_rows(a, blockIdx.x, first, last)) return;
  const Words<kFrom, kTo> words(a);
  const int x = static_cast<int>(threadIdx.x) % 32, y = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.y} * kBlock + x * kEach;
  float4 v[kBlock / kRowsAtOnce], top = all(0);
#pragma unroll
  for (int i = 0; i < kBlock / kRowsAtOnce; ++i) {
    const int64_t row = first + y + i * kRowsAtOnce;
    v[i] = row < last ? load<kFrom>(source_of(a), words.from, row, c) : all(0);
    top = largest_each(top, v[i]);
  }
  part[y][x] = top;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) top = largest_each(top, part[i][x]);
  const float4 down = scales_of(top);
  Args other = a;
  other.y = a.down;
  other.y_bf16 = a.down_bf16;
#pragma unroll
  for (int i = 0; i < kBlock / kRowsAtOnce; ++i) {
    const int64_t row = first + y + i * kRowsAtOnce;
    const float largest = warp_largest(largest_of(v[i]));
    if (row >= last) continue;
    store<kTo>(a, words.to, row, c, v[i], all(scale_of(largest, false)));
    store<kTo>(other, words.to, row, c, v[i], down);
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
  float4 v[kBlock / kRowsAtOnce];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kBlock / kRowsAtOnce; ++i) {
    const int64_t row = first + i * kRowsAtOnce;
    v[i] = row < a.rows ? load<false>(source_of(a), words.from, row, c) : all(0);
    largest = fmaxf(largest, largest_of(v[i]));
  }
  const float scale = scale_of(block_max<kThreads>(largest), true);
#pragma unroll
  for (int i = 0; i < kBlock / kRowsAtOnce; ++i) {
    const int64_t row = first + i * kRowsAtOnce;
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
    const bool both = a.blocks == Fp8Blocks::kBoth;
    const dim3 grid(static_cast<unsigned>(down),
                    static_cast<unsigned>(tiles(a.width, both ? kBlock : kColumns)));
    const auto kernel = both ? round_both_kernel<kFrom, kTo> : round_down_kernel<kFrom, kTo>;
    kernel<<<grid, kThreads, 0, stream_of(context)>>>(a);
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
