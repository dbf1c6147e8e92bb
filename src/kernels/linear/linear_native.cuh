// linear on tensor cores: x and W multiplied as they are stored, sums in float32.
//
//   bf16   y[m,r] = sum_c W[r,c] x[m,c]                      W BF16, x rounded to bf16
//   fp8    y[m,r] = sum_b s_x[m,b] s_w[r/128,b] sum_c q_w q_x   W F8_E4M3, x by act_quant
//
// x is prepared once per launch (prepare.cu): [m, cols padded to 128] of bf16, or of e4m3 values
// as f16 (exact) with scales [m, blocks]. e4m3 codes of W become f16 in registers, so that FP8 runs
// on every GPU from sm_80 on, at the speed of 16-bit products.
//
// Order of a sum, the same in both kernels, a function of the columns alone. A block is 128
// columns: eight mma steps from zero; step s of half h has the columns 64h + 16t + 4s + 0..3, t =
// 0..3, so that a thread's columns of a half are 16 neighbours and come with 16-byte loads. Blocks
// are added in order, total + sum, or fma(sum, s_x s_w, total).
//
// few_kernel, up to 16 rows of x: a block of 8 warps has 16 rows of W; warp w sums the blocks w,
// w+8, .. straight from global memory, the next one's loads in flight; block sums meet in shared
// memory and are added in order. Bound by memory: W once.
// tile_kernel, more rows: 64 or 128 columns of W and x at a time in shared memory, copied by
// cp.async up to kStages - 1 steps ahead, a block's scales with them; 8 warps of kMt x kNt mma
// tiles. Bound by mma: 2 * m * rows * cols flops. A warp of 64 x 32 reads 8 KB (FP8) or 12 KB of
// shared memory for 64 columns, 64 or 96 clocks of an SM for 102 of mma.sync.
#pragma once

#include <algorithm>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/linear/native_products.cuh"

namespace tamis {
namespace native {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kHalf = 64;  // columns of a pipeline step

// The 16 columns of a thread in one half of a block, of one row: 4 words of e4m3, 8 of bf16.
template <bool kFp8>
struct RowPart {
  uint4 raw[kFp8 ? 1 : 2];

  __device__ uint32_t word(int i) const {
    const uint4& q = raw[i / 4];
    return i % 4 == 0 ? q.x : i % 4 == 1 ? q.y : i % 4 == 2 ? q.z : q.w;
  }
  // Columns 4s, 4s+1 (second 0) or 4s+2, 4s+3 (second 1) as two 16-bit values.
  __device__ uint32_t pair(int s, int second) const {
    if constexpr (kFp8) {
      return ptx::e4m3x2_to_f16x2(static_cast<uint16_t>(word(s) >> (16 * second)));
    } else {
      return word(2 * s + second);
    }
  }
};

template <bool kFp8>
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kFp8) {
    mma_f16(sum, a, b0, b1);
  } else {
    mma_bf16(sum, a, b0, b1);
  }
}

// Whether rows of W can be read in 16 bytes. The last block may be short.
template <bool kFp8>
__device__ inline bool wide_rows(const Weight& w) {
  return reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && w.row_bytes % 16 == 0 &&
         w.cols % (kFp8 ? 16 : 8) == 0;
}

// kBytes bytes of a row of W from its byte `begin` on, zeros past its end, one element at a time.
template <bool kFp8, int kBytes>
__device__ inline void gather(const Weight& w, int64_t row, int64_t begin, void* to) {
  constexpr int kSize = kFp8 ? 1 : 2;
  const std::byte* from = w.data + row * w.row_bytes;
  for (int i = 0; i < kBytes / kSize; ++i) {
    const int64_t c = begin / kSize + i;
    if constexpr (kFp8) {
      static_cast<uint8_t*>(to)[i] =
          c < w.cols ? reinterpret_cast<const uint8_t*>(from)[c] : uint8_t{0};
    } else {
      static_cast<uint16_t*>(to)[i] =
          c < w.cols ? reinterpret_cast<const uint16_t*>(from)[c] : uint16_t{0};
    }
  }
}

template <bool kFp8>
__device__ inline RowPart<kFp8> load_weight(const Weight& w, bool wide, int64_t row, int64_t col) {
  RowPart<kFp8> part;
  constexpr int kSize = kFp8 ? 1 : 2;
  row = min(row, w.rows - 1);
#pragma unroll
  for (int i = 0; i < (kFp8 ? 1 : 2); ++i) {
    const int64_t begin = col * kSize + 16 * i;
    if (wide) {
      part.raw[i] = begin < w.cols * kSize
                        ? __ldg(reinterpret_cast<const uint4*>(w.data + row * w.row_bytes + begin))
                        : make_uint4(0, 0, 0, 0);
    } else {
      gather<kFp8, 16>(w, row, begin, &part.raw[i]);
    }
  }
  return part;
}

__device__ inline RowPart<false> load_x(const NativeProduct& p, int64_t m, int64_t col) {
  RowPart<false> part;
  const auto* from = reinterpret_cast<const uint4*>(p.x + min(m, p.m - 1) * p.x_stride + col);
  part.raw[0] = from[0];
  part.raw[1] = from[1];
  return part;
}

__device__ inline float weight_scale(const Weight& w, int64_t row, int64_t block) {
  return reinterpret_cast<const float*>(
      w.scales)[(min(row, w.rows - 1) + w.row_offset) / kFp8Block * w.scale_stride +
                w.col_offset / kFp8Block + block];
}
__device__ inline float x_scale(const NativeProduct& p, int64_t m, int64_t block) {
  return p.x_scales[min(m, p.m - 1) * (p.x_stride / kFp8Block) + block];
}

// total after one more block sum.
template <bool kFp8>
__device__ inline float add_block(float total, float sum, float scale) {
  return kFp8 ? fmaf(sum, scale, total) : total + sum;
}

// One block of 128 columns of 16 rows of W and 8 * kNt rows of x, as one warp loads it.
template <bool kFp8, int kNt>
struct BlockOperands {
  RowPart<kFp8> w[2][2];     // [half][row g or g + 8]
  RowPart<false> x[2][kNt];  // [half][tile]

  __device__ void load(const NativeProduct& p, bool wide, int64_t r0, int64_t m0, int64_t block) {
    const int64_t g = threadIdx.x % 32 / 4, col = block * kFp8Block + threadIdx.x % 4 * 16;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      w[h][0] = load_weight<kFp8>(p.w, wide, r0 + g, col + h * kHalf);
      w[h][1] = load_weight<kFp8>(p.w, wide, r0 + g + 8, col + h * kHalf);
#pragma unroll
      for (int n = 0; n < kNt; ++n) x[h][n] = load_x(p, m0 + 8 * n + g, col + h * kHalf);
    }
  }
  __device__ void multiply_into(float (&sum)[kNt][4]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const uint32_t a[4] = {w[h][0].pair(s, 0), w[h][1].pair(s, 0), w[h][0].pair(s, 1),
                               w[h][1].pair(s, 1)};
#pragma unroll
        for (int n = 0; n < kNt; ++n) {
          multiply<kFp8>(sum[n], a, x[h][n].pair(s, 0), x[h][n].pair(s, 1));
        }
      }
    }
  }
};

constexpr int kFewRows = 16;  // rows of W of a block

// Block sums in shared memory: [block][row of x][row of W].
template <int kNt>
struct FewStorage {
  static constexpr int kBlocks = 64 / kNt;
  float sum[kBlocks][8 * kNt][kFewRows];
};

template <bool kFp8, int kNt>
__device__ inline void few_sums(const NativeProduct& p, int64_t r0, int64_t m0, int64_t begin,
                                int64_t end, FewStorage<kNt>& storage) {
  const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
  const bool wide = wide_rows<kFp8>(p.w);
  BlockOperands<kFp8, kNt> now, next;
  int64_t block = begin + threadIdx.x / 32;
  if (block < end) now.load(p, wide, r0, m0, block);
  for (; block < end; block += kWarps) {
    if (block + kWarps < end) next.load(p, wide, r0, m0, block + kWarps);
    float sum[kNt][4] = {};
    now.multiply_into(sum);
#pragma unroll
    for (int n = 0; n < kNt; ++n) {
      auto& to = storage.sum[block - begin];
      to[8 * n + 2 * t][g] = sum[n][0];
      to[8 * n + 2 * t + 1][g] = sum[n][1];
      to[8 * n + 2 * t][g + 8] = sum[n][2];
      to[8 * n + 2 * t + 1][g + 8] = sum[n][3];
    }
    now = next;
  }
}

template <bool kFp8, int kNt>
__global__ void __launch_bounds__(kThreads, 2) few_kernel(const NativeProducts products) {
  __shared__ FewStorage<kNt> storage;
  const NativeProduct p = products.product(static_cast<int>(blockIdx.z));
  const int64_t r0 = int64_t{blockIdx.x} * kFewRows;
  if (r0 >= p.w.rows) return;
  const int64_t blocks = p.x_stride / kFp8Block;
  const int own_r = static_cast<int>(threadIdx.x) % kFewRows;
  const int own_m = static_cast<int>(threadIdx.x) / kFewRows;
  for (int64_t m0 = int64_t{blockIdx.y} * 8 * kNt; m0 < p.m; m0 += int64_t{gridDim.y} * 8 * kNt) {
    float total = 0;
    for (int64_t begin = 0; begin < blocks; begin += FewStorage<kNt>::kBlocks) {
      const int64_t end = min(begin + FewStorage<kNt>::kBlocks, blocks);
      few_sums<kFp8, kNt>(p, r0, m0, begin, end, storage);
      __syncthreads();
      if (own_m < 8 * kNt) {
#pragma unroll 8
        for (int64_t b = begin; b < end; ++b) {
          float scale = 1;
          if constexpr (kFp8) scale = x_scale(p, m0 + own_m, b) * weight_scale(p.w, r0 + own_r, b);
          total = add_block<kFp8>(total, storage.sum[b - begin][own_m][own_r], scale);
        }
      }
      __syncthreads();
    }
    if (own_m < 8 * kNt && m0 + own_m < p.m && r0 + own_r < p.w.rows) {
      p.y[(m0 + own_m) * p.y_stride + r0 + own_r] = products.round_bf16 ? round_bf16(total) : total;
    }
  }
}

// kRows rows of W by kXRows rows of x, kColumns columns a step; warps: kDown along W, 8 / kDown
// along x.
template <bool kFp8_, int kRows_, int kXRows_, int kDown_, int kColumns_, int kStages_>
struct Tile {
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kRows = kRows_, kXRows = kXRows_, kDown = kDown_, kStages = kStages_;
  static constexpr int kAcross = kWarps / kDown, kHalves = kColumns_ / kHalf;
  static constexpr int kMt = kRows / kDown / 16, kNt = kXRows / kAcross / 8;
  static constexpr int kWeightBytes = kHalf * (kFp8 ? 1 : 2);  // of a row in half a block
  static constexpr int kXBytes = kHalf * 2;
  static constexpr int kHalfBytes = kRows * kWeightBytes + kXRows * kXBytes;
  static constexpr int kStageBytes = kHalfBytes * kHalves;
  // The scales of a block's rows: as many blocks as can be on their way, and two.
  static constexpr int kScaleSlots = kStages * kHalves / 2 + 2;
  static constexpr int kScaleBytes = kFp8 ? (kXRows + kRows) * 4 : 0;
  static constexpr int kSharedBytes = kStageBytes * kStages + kScaleBytes * kScaleSlots;
  // 16-byte copies of a thread in a step, each kWeightRows (kXRowsApart) rows below the last.
  static constexpr int kWeightChunks = kWeightBytes / 16 * kHalves, kXChunks = 8 * kHalves;
  static constexpr int kWeightRows = kThreads / kWeightChunks, kXRowsApart = kThreads / kXChunks;
  static constexpr int kWeightCopies = kRows / kWeightRows, kXCopies = kXRows / kXRowsApart;
  static_assert(kMt * kDown * 16 == kRows && kNt * kAcross * 8 == kXRows);
  static_assert(kHalves * kHalf == kColumns_ && kHalves <= 2);
  static_assert(kWeightCopies * kWeightRows == kRows && kXCopies * kXRowsApart == kXRows);
  static_assert(kWeightRows % 2 == 0 && kXRowsApart % 2 == 0, "chunk_at(row) - row is the same");
  static_assert(kXRows + kRows <= kThreads, "one scale a thread");
  static_assert(kSharedBytes <= 99 * 1024, "what every GPU from sm_80 on has");
};

// Where 16-byte chunk `chunk` of row `row` lies. Rows of 128 bytes: neighbouring rows swap odd and
// even chunks, so that threads reading chunks 0, 2, 4, 6 of two rows meet all banks.
template <int kRowBytes>
__device__ inline int chunk_at(int row, int chunk) {
  return row * kRowBytes + (kRowBytes == 128 ? chunk ^ (row & 1) : chunk) * 16;
}

// A thread's copies into shared memory, step after step. Everything that a step does not change is
// worked out once: the kernel is bound by instructions, not by addresses.
template <typename T>
class Copies {
 public:
  __device__ Copies(const NativeProduct& p, int64_t r0, int64_t m0)
      : p_(p), r0_(r0), wide_(wide_rows<T::kFp8>(p.w)) {
    const int tid = static_cast<int>(threadIdx.x);
    const int row = tid / T::kWeightChunks, chunk = tid % T::kWeightChunks;
    constexpr int kInHalf = T::kWeightBytes / 16;
    weight_at_ = chunk / kInHalf * T::kHalfBytes + chunk_at<T::kWeightBytes>(row, chunk % kInHalf);
    weight_byte_ = chunk * 16;
    weight_ = p.w.data + r0 * p.w.row_bytes + weight_byte_;
#pragma unroll
    for (int i = 0; i < T::kWeightCopies; ++i) {
      const int64_t r = min(r0 + row + i * T::kWeightRows, p.w.rows - 1) - r0;
      weight_row_[i] = static_cast<uint32_t>(r * p.w.row_bytes);
    }
    const int x_row = tid / T::kXChunks, x_chunk = tid % T::kXChunks;
    x_at_ = x_chunk / 8 * T::kHalfBytes + T::kRows * T::kWeightBytes +
            chunk_at<T::kXBytes>(x_row, x_chunk % 8);
    x_ = p.x + m0 * p.x_stride + x_chunk * 8;
#pragma unroll
    for (int i = 0; i < T::kXCopies; ++i) {
      const int64_t m = min(m0 + x_row + i * T::kXRowsApart, p.m - 1) - m0;
      x_row_[i] = static_cast<uint32_t>(m * p.x_stride);
    }
    if constexpr (T::kFp8) {
      const int64_t m = min(m0 + tid, p.m - 1), w = r0 + tid - T::kXRows;
      scale_ = tid < T::kXRows ? p.x_scales + m * (p.x_stride / kFp8Block)
                               : weight_scale_at(p.w, min(w, p.w.rows - 1));
    }
  }

  // Starts the copies of the next step into `stage`.
  __device__ void start(std::byte* stage) {
    constexpr int kBytes = T::kWeightBytes * T::kHalves;  // of a row of W in a step
    if (wide_) {
      const bool inside = weight_byte_ < p_.w.cols * (T::kFp8 ? 1 : 2);
#pragma unroll
      for (int i = 0; i < T::kWeightCopies; ++i) {
        ptx::cp_async_16(stage + weight_at_ + i * T::kWeightRows * T::kWeightBytes,
                         inside ? weight_ + weight_row_[i] : p_.w.data, inside);
      }
    } else {
      gather_rows(stage);
    }
    weight_ += kBytes;
    weight_byte_ += kBytes;
#pragma unroll
    for (int i = 0; i < T::kXCopies; ++i) {
      ptx::cp_async_16(stage + x_at_ + i * T::kXRowsApart * T::kXBytes, x_ + x_row_[i]);
    }
    x_ += kHalf * T::kHalves;
  }

  // Starts the copies of the next block's scales: those of x, then those of W.
  __device__ void start_scales(std::byte* slot) {
    if (static_cast<int>(threadIdx.x) < T::kXRows + T::kRows) {
      ptx::cp_async_4(slot + threadIdx.x * 4, scale_);
    }
    ++scale_;
  }

 private:
  static __device__ const float* weight_scale_at(const Weight& w, int64_t row) {
    return reinterpret_cast<const float*>(w.scales) +
           (row + w.row_offset) / kFp8Block * w.scale_stride + w.col_offset / kFp8Block;
  }
  __device__ void gather_rows(std::byte* stage) const {
    const int row = static_cast<int>(threadIdx.x) / T::kWeightChunks;
    for (int i = 0; i < T::kWeightCopies; ++i) {
      const int64_t r = min(r0_ + row + i * T::kWeightRows, p_.w.rows - 1);
      gather<T::kFp8, 16>(p_.w, r, weight_byte_,
                          stage + weight_at_ + i * T::kWeightRows * T::kWeightBytes);
    }
  }

  const NativeProduct& p_;
  int64_t r0_;
  bool wide_;
  const std::byte* weight_;  // the thread's chunk of row r0 in the next step
  int64_t weight_byte_;
  uint32_t weight_row_[T::kWeightCopies], x_row_[T::kXCopies];  // from r0, m0 to the copies' rows
  const uint16_t* x_;
  const float* scale_ = nullptr;
  int weight_at_, x_at_;  // in a stage
};

template <bool kFp8>
__device__ inline RowPart<kFp8> read_part(const std::byte* rows, int row) {
  RowPart<kFp8> part;
  const int t = static_cast<int>(threadIdx.x % 4);
  if constexpr (kFp8) {
    part.raw[0] = *reinterpret_cast<const uint4*>(rows + chunk_at<64>(row, t));
  } else {
    part.raw[0] = *reinterpret_cast<const uint4*>(rows + chunk_at<128>(row, 2 * t));
    part.raw[1] = *reinterpret_cast<const uint4*>(rows + chunk_at<128>(row, 2 * t + 1));
  }
  return part;
}

// 64 columns.
template <typename T>
__device__ inline void multiply_half(const std::byte* half, int warp_row, int warp_x,
                                     float (&sum)[T::kMt][T::kNt][4]) {
  const int g = static_cast<int>(threadIdx.x % 32 / 4);
  const std::byte* xs = half + T::kRows * T::kWeightBytes;
  RowPart<false> x[T::kNt];
#pragma unroll
  for (int n = 0; n < T::kNt; ++n) x[n] = read_part<false>(xs, warp_x + 8 * n + g);
#pragma unroll
  for (int i = 0; i < T::kMt; ++i) {
    const auto low = read_part<T::kFp8>(half, warp_row + 16 * i + g);
    const auto high = read_part<T::kFp8>(half, warp_row + 16 * i + g + 8);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const uint32_t a[4] = {low.pair(s, 0), high.pair(s, 0), low.pair(s, 1), high.pair(s, 1)};
#pragma unroll
      for (int n = 0; n < T::kNt; ++n) {
        multiply<T::kFp8>(sum[i][n], a, x[n].pair(s, 0), x[n].pair(s, 1));
      }
    }
  }
}

// Adds a block's sums to the totals, times the scales in `slot`, and clears them.
template <typename T>
__device__ inline void end_block(const std::byte* slot, int warp_row, int warp_x,
                                 float (&sum)[T::kMt][T::kNt][4],
                                 float (&total)[T::kMt][T::kNt][4]) {
  const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
  const auto* scales = reinterpret_cast<const float*>(slot);
  float x[T::kNt][2] = {};
  if constexpr (T::kFp8) {
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
      const auto two = *reinterpret_cast<const float2*>(scales + warp_x + 8 * n + 2 * t);
      x[n][0] = two.x;
      x[n][1] = two.y;
    }
  }
#pragma unroll
  for (int i = 0; i < T::kMt; ++i) {
    float w[2] = {};
    if constexpr (T::kFp8) {
      w[0] = scales[T::kXRows + warp_row + 16 * i + g];
      w[1] = scales[T::kXRows + warp_row + 16 * i + g + 8];
    }
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        total[i][n][k] = add_block<T::kFp8>(total[i][n][k], sum[i][n][k], x[n][k % 2] * w[k / 2]);
        sum[i][n][k] = 0;
      }
    }
  }
}

template <typename T>
__device__ inline void tile_product(const NativeProduct& p, int64_t r0, int64_t m0, bool round,
                                    std::byte* shared) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int warp_row = warp % T::kDown * (T::kMt * 16), warp_x = warp / T::kDown * (T::kNt * 8);
  const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
  constexpr int kStepsABlock = 2 / T::kHalves;
  const auto steps = static_cast<int>(p.x_stride / (kHalf * T::kHalves));
  std::byte* scales = shared + T::kStages * T::kStageBytes;
  Copies<T> copies(p, r0, m0);
  int begun = 0, begun_stage = 0, begun_slot = 0;  // what the next copies are
  const auto begin_step = [&] {
    if (begun < steps) {
      copies.start(shared + begun_stage * T::kStageBytes);
      if (T::kFp8 && begun % kStepsABlock == 0) {
        copies.start_scales(scales + begun_slot * T::kScaleBytes);
        begun_slot = begun_slot + 1 == T::kScaleSlots ? 0 : begun_slot + 1;
      }
    }
    ptx::cp_async_commit();
    ++begun;
    begun_stage = begun_stage + 1 == T::kStages ? 0 : begun_stage + 1;
  };
  float total[T::kMt][T::kNt][4] = {}, sum[T::kMt][T::kNt][4] = {};
  for (int s = 0; s < T::kStages - 1; ++s) begin_step();
  int stage = 0, slot = 0;
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<T::kStages - 2>();
    __syncthreads();
    begin_step();
#pragma unroll
    for (int h = 0; h < T::kHalves; ++h) {
      multiply_half<T>(shared + stage * T::kStageBytes + h * T::kHalfBytes, warp_row, warp_x, sum);
    }
    stage = stage + 1 == T::kStages ? 0 : stage + 1;
    if (step % kStepsABlock != kStepsABlock - 1) continue;
    end_block<T>(scales + slot * T::kScaleBytes, warp_row, warp_x, sum, total);
    slot = slot + 1 == T::kScaleSlots ? 0 : slot + 1;
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // the next tile may overwrite the stages
#pragma unroll
  for (int i = 0; i < T::kMt; ++i) {
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t row = r0 + warp_row + 16 * i + g + k / 2 * 8;
        const int64_t m = m0 + warp_x + 8 * n + 2 * t + k % 2;
        if (row < p.w.rows && m < p.m) {
          p.y[m * p.y_stride + row] = round ? round_bf16(total[i][n][k]) : total[i][n][k];
        }
      }
    }
  }
}

// Neighbouring blocks share a tile of W: `side` tiles of x by one of W, then the next of W.
template <typename T>
__global__ void __launch_bounds__(kThreads) tile_kernel(const NativeProducts products, int side) {
  extern __shared__ __align__(16) std::byte shared[];
  const NativeProduct p = products.product(static_cast<int>(blockIdx.z));
  const int64_t r0 = int64_t{blockIdx.x} / side * T::kRows;
  if (r0 >= p.w.rows) return;
  const int64_t first = int64_t{blockIdx.y} * side + blockIdx.x % side;
  for (int64_t tile = first; tile * T::kXRows < p.m; tile += int64_t{gridDim.y} * side) {
    tile_product<T>(p, r0, tile * T::kXRows, products.round_bf16, shared);
  }
}

template <bool kFp8, int kNt>
void launch_few(KernelContext& context, const NativeProducts& p, int64_t rows, int64_t m) {
  const dim3 grid(static_cast<unsigned>((rows + kFewRows - 1) / kFewRows),
                  static_cast<unsigned>(std::clamp<int64_t>((m + 8 * kNt - 1) / (8 * kNt), 1, 64)),
                  static_cast<unsigned>(p.count));
  few_kernel<kFp8, kNt><<<grid, kThreads, 0, stream_of(context)>>>(p);
  check_launch("linear (few rows)");
}

template <typename T>
void launch_tile(KernelContext& context, const NativeProducts& p, int64_t rows, int64_t m) {
  constexpr int64_t kSide = 8;
  const int64_t tiles = std::max<int64_t>((m + T::kXRows - 1) / T::kXRows, 1);
  const int64_t side = std::min(tiles, kSide);
  const dim3 grid(static_cast<unsigned>((rows + T::kRows - 1) / T::kRows * side),
                  static_cast<unsigned>(std::min<int64_t>((tiles + side - 1) / side, 65535)),
                  static_cast<unsigned>(p.count));
  allow_shared(reinterpret_cast<const void*>(tile_kernel<T>), T::kSharedBytes, "linear (tile)");
  tile_kernel<T>
      <<<grid, kThreads, T::kSharedBytes, stream_of(context)>>>(p, static_cast<int>(side));
  check_launch("linear (tile)");
}

// rows: the most rows of W of any product; m: about how many rows of x each has. Only the speed
// depends on m.
template <bool kFp8>
void products_native(KernelContext& context, const NativeProducts& p, int64_t rows, int64_t m) {
  if (p.count == 0 || rows == 0 || m == 0) return;
  if (m <= 8) return launch_few<kFp8, 1>(context, p, rows, m);
  if (m <= 16) return launch_few<kFp8, 2>(context, p, rows, m);
  if (m <= 32) return launch_tile<Tile<kFp8, 64, 32, 4, 128, 4>>(context, p, rows, m);
  const int64_t large = (rows + 127) / 128 * ((m + 127) / 128) * p.count;
  if (m <= 64 || large < context.device()->info().multiprocessors) {
    return launch_tile<Tile<kFp8, 64, 64, 4, 128, 3>>(context, p, rows, m);
  }
  launch_tile<Tile<kFp8, 128, 128, 2, 64, 3>>(context, p, rows, m);
}

}  // namespace native
}  // namespace tamis
