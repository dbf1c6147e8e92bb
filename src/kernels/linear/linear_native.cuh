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
// tile_kernel, more rows: here rows of x are the rows of the product, so that ldmatrix gives them
// as mma wants them (prepare.cu has put their columns in that order), and W's 16-byte reads are
// the two registers of its columns. 64 or 128 columns at a time in shared memory, copied by
// cp.async kStages - 1 stages ahead, a block's scales with them; operands are read one step of mma
// ahead. 8 warps of 64 x 32 outputs. Bound by mma: 2 * m * rows * cols flops; a warp reads 10 KB
// (FP8) or 12 KB of shared memory for 64 columns, 80 or 96 clocks of an SM for 102 of mma.sync.
#pragma once

#include <algorithm>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/linear/native_products.cuh"
#include "kernels/linear/weight_rows.cuh"
#include "tensor/cuda/device.h"

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

// kXRows rows of x by kRows rows of W, kColumns columns a stage; warps: kDown along x, 8 / kDown
// along W.
template <bool kFp8_, int kXRows_, int kRows_, int kDown_, int kColumns_, int kStages_>
struct Tile {
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kRows = kRows_, kXRows = kXRows_, kDown = kDown_, kStages = kStages_;
  static constexpr int kAcross = kWarps / kDown, kHalves = kColumns_ / kHalf;
  static constexpr int kMt = kXRows / kDown / 16, kNt = kRows / kAcross / 8;
  static constexpr int kWeightBytes = kHalf * (kFp8 ? 1 : 2);  // of a row in half a block
  static constexpr int kXBytes = kHalf * 2;
  static constexpr int kHalfBytes = kRows * kWeightBytes + kXRows * kXBytes;
  static constexpr int kStageBytes = kHalfBytes * kHalves;
  // The scales of a block's rows: as many blocks as can be on their way, and two.
  static constexpr int kScaleSlots = kStages * kHalves / 2 + 2;
  static constexpr int kScaleBytes = kFp8 ? (kXRows + kRows) * 4 : 0;
  static constexpr int kSharedBytes = kStageBytes * kStages + kScaleBytes * kScaleSlots;
  // 16-byte copies of a thread in a stage, each kWeightRows (kXRowsApart) rows below the last.
  static constexpr int kWeightChunks = kWeightBytes / 16 * kHalves, kXChunks = 8 * kHalves;
  static constexpr int kWeightRows = kThreads / kWeightChunks, kXRowsApart = kThreads / kXChunks;
  static constexpr int kWeightCopies = kRows / kWeightRows, kXCopies = kXRows / kXRowsApart;
  static_assert(kMt * kDown * 16 == kXRows && kNt * kAcross * 8 == kRows);
  static_assert(kHalves * kHalf == kColumns_ && kHalves <= 2);
  static_assert(kWeightCopies * kWeightRows == kRows && kXCopies * kXRowsApart == kXRows);
  static_assert(kWeightRows % 2 == 0 && kXRowsApart % 8 == 0, "the exchange is the same for all");
  static_assert(kXRows + kRows <= kThreads, "one scale a thread");
  static_assert(kSharedBytes <= 99 * 1024, "what every GPU from sm_80 on has");
};

// Where 16-byte chunk `chunk` of a row of W lies. A warp reads chunks t (FP8) or 2t + c (bf16) of
// eight rows at once: rows of 128 bytes exchange odd and even chunks with their neighbours.
template <int kRowBytes>
__device__ inline int weight_at(int row, int chunk) {
  return row * kRowBytes + (kRowBytes == 128 ? chunk ^ (row & 1) : chunk) * 16;
}
// The same of x, which ldmatrix reads: one chunk of eight rows at once.
__device__ inline int x_at(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }

// Keeps the compiler from working `x` out anew wherever it is used.
__device__ inline void keep(uint32_t& x) { asm volatile("" : "+r"(x)); }

// A thread's copies into shared memory, stage after stage. Everything that a stage does not change
// is worked out once.
template <typename T>
class Copies {
 public:
  __device__ Copies(const NativeProduct& p, int64_t r0, int64_t m0)
      : p_(p), r0_(r0), wide_(wide_rows<T::kFp8>(p.w)) {
    const int tid = static_cast<int>(threadIdx.x);
    const int row = tid / T::kWeightChunks, chunk = tid % T::kWeightChunks;
    constexpr int kInHalf = T::kWeightBytes / 16, kSize = T::kFp8 ? 1 : 2;
    weight_to_ = static_cast<uint32_t>(chunk / kInHalf * T::kHalfBytes +
                                       weight_at<T::kWeightBytes>(row, chunk % kInHalf));
    weight_byte_ = chunk * 16;
    row_bytes_ = static_cast<int>(p.w.cols * kSize);
    weight_ = p.w.data + r0 * p.w.row_bytes + weight_byte_;
#pragma unroll
    for (int i = 0; i < T::kWeightCopies; ++i) {
      const int64_t r = min(r0 + row + i * T::kWeightRows, p.w.rows - 1) - r0;
      weight_row_[i] = static_cast<uint32_t>(r * p.w.row_bytes);
      keep(weight_row_[i]);
    }
    const int x_row = tid / T::kXChunks, x_chunk = tid % T::kXChunks;
    x_to_ = static_cast<uint32_t>(x_chunk / 8 * T::kHalfBytes + T::kRows * T::kWeightBytes +
                                  x_at(x_row, x_chunk % 8));
    x_ = reinterpret_cast<const std::byte*>(p.x + m0 * p.x_stride + x_chunk * 8);
#pragma unroll
    for (int i = 0; i < T::kXCopies; ++i) {
      const int64_t m = min(m0 + x_row + i * T::kXRowsApart, p.m - 1) - m0;
      x_row_[i] = static_cast<uint32_t>(m * p.x_stride * 2);
      keep(x_row_[i]);
    }
    keep(weight_to_);
    keep(x_to_);
    if constexpr (T::kFp8) {
      const int64_t m = min(m0 + tid, p.m - 1), w = r0 + tid - T::kXRows;
      scale_ = tid < T::kXRows ? p.x_scales + m * (p.x_stride / kFp8Block)
                               : weight_scale_at(p.w, min(w, p.w.rows - 1));
    }
  }

  // Starts the copies of the next columns of W into `stage`. Past a row's end there are zeros.
  __device__ void start_weights(std::byte* stage) {
    constexpr int kBytes = T::kWeightBytes * T::kHalves;  // of a row of W in a stage
    if (wide_) {
      const bool inside = weight_byte_ < row_bytes_;
#pragma unroll
      for (int i = 0; i < T::kWeightCopies; ++i) {
        ptx::cp_async_16(stage + weight_to_ + i * T::kWeightRows * T::kWeightBytes,
                         weight_ + weight_row_[i], inside);
      }
    } else {
      gather_rows(stage);
    }
    weight_ += kBytes;
    weight_byte_ += kBytes;
  }

  // The same of x.
  __device__ void start_x(std::byte* stage) {
#pragma unroll
    for (int i = 0; i < T::kXCopies; ++i) {
      ptx::cp_async_16(stage + x_to_ + i * T::kXRowsApart * T::kXBytes, x_ + x_row_[i]);
    }
    x_ += T::kXBytes * T::kHalves;
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
#pragma unroll 1
    for (int i = 0; i < T::kWeightCopies; ++i) {
      const int64_t r = min(r0_ + row + i * T::kWeightRows, p_.w.rows - 1);
      gather<T::kFp8, 16>(p_.w, r, weight_byte_,
                          stage + weight_to_ + i * T::kWeightRows * T::kWeightBytes);
    }
  }

  const NativeProduct& p_;
  int64_t r0_;
  bool wide_;
  const std::byte *weight_, *x_;  // the thread's chunk of rows r0 and m0 in the next stage
  int weight_byte_, row_bytes_;
  uint32_t weight_row_[T::kWeightCopies], x_row_[T::kXCopies];  // from there to the copies' rows
  uint32_t weight_to_, x_to_;                                   // in a stage
  const float* scale_ = nullptr;
};

// A warp's operands, read ahead: x (rows of the product) by one step of mma, W (its columns) by
// one read, 32 columns in bf16 and 64 in FP8.
template <typename T>
struct Operands {
  uint32_t x[2][T::kMt][4];
  uint4 w[2][T::kNt];
  const std::byte *x_rows, *w_rows;  // the lane's, in the first half of a stage
  int x_exchange, w_row;

  __device__ Operands(const std::byte* stages, int x_row, int first_w_row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    x_rows = stages + T::kRows * T::kWeightBytes + (x_row + lane % 16) * 128;
    x_exchange = (lane / 16 ^ lane % 8) * 16;
    w_row = first_w_row + lane / 4;
    w_rows = stages;
  }
  // Step `step` of a stage (0 ..), into buffer step % 2; `stage` is its offset in bytes.
  __device__ void load_x(int stage, int step) {
#pragma unroll
    for (int m = 0; m < T::kMt; ++m) {
      ptx::ldmatrix_x4(x[step % 2][m], x_rows + stage + step / 4 * T::kHalfBytes + m * 16 * 128 +
                                           (step % 4 * 32 ^ x_exchange));
    }
  }
  // What step `step` of a block, step `in_stage` of the stage, is the first to need.
  __device__ void load_w(int stage, int in_stage, int step) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    const int chunk = T::kFp8 ? t : 2 * t + in_stage / 2 % 2;
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
      w[step / kSteps % 2][n] =
          *reinterpret_cast<const uint4*>(w_rows + stage + in_stage / 4 * T::kHalfBytes +
                                          weight_at<T::kWeightBytes>(w_row + 8 * n, chunk));
    }
  }
  static constexpr int kSteps = T::kFp8 ? 4 : 2;  // that one read of W serves

  // Products of step kStep of a block; in the first, before(m) before those of 16 rows of x.
  template <int kStep, typename Before>
  __device__ void multiply_step(float (&sum)[T::kMt][T::kNt][4], const Before& before) const {
    uint32_t b[T::kNt][2];
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
      const uint4& v = w[kStep / kSteps % 2][n];
      if constexpr (T::kFp8) {
        constexpr int kWord = kStep % 4;
        ptx::e4m3x4_to_f16x2(kWord == 0   ? v.x
                             : kWord == 1 ? v.y
                             : kWord == 2 ? v.z
                                          : v.w,
                             &b[n][0], &b[n][1]);
      } else {
        b[n][0] = kStep % 2 == 0 ? v.x : v.z;
        b[n][1] = kStep % 2 == 0 ? v.y : v.w;
      }
    }
#pragma unroll
    for (int m = 0; m < T::kMt; ++m) {
      if constexpr (kStep == 0) before(m);
#pragma unroll
      for (int n = 0; n < T::kNt; ++n) {
        if constexpr (kStep != 0) {
          multiply<T::kFp8>(sum[m][n], x[kStep % 2][m], b[n][0], b[n][1]);
        } else if constexpr (T::kFp8) {
          mma_f16_first(sum[m][n], x[0][m], b[n][0], b[n][1]);
        } else {
          mma_bf16_first(sum[m][n], x[0][m], b[n][0], b[n][1]);
        }
      }
    }
  }
};

// The scales of a block's outputs: those of the thread's columns (rows of W). Mostly all rows of W
// in a tile have one.
template <typename T>
struct BlockScales {
  const float* slot;
  bool one;
  float w[T::kNt][2];

  __device__ void load(const std::byte* at, int w_row, bool one_scale) {
    const int t = static_cast<int>(threadIdx.x % 4);
    slot = reinterpret_cast<const float*>(at);
    one = one_scale;
    if (one) {
      w[0][0] = slot[T::kXRows];
      return;
    }
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
      const auto two = *reinterpret_cast<const float2*>(slot + T::kXRows + w_row + 8 * n + 2 * t);
      w[n][0] = two.x;
      w[n][1] = two.y;
    }
  }
};

// Adds a block's sums of 16 rows of x, from `x_row` on, to the totals, times the scales.
template <typename T>
__device__ inline void add_sums(const BlockScales<T>& scales, int x_row,
                                const float (&sum)[T::kNt][4], float (&total)[T::kNt][4]) {
  float x[2] = {};
  if constexpr (T::kFp8) {
    const int g = static_cast<int>(threadIdx.x % 32 / 4);
    x[0] = scales.slot[x_row + g];
    x[1] = scales.slot[x_row + g + 8];
    if (scales.one) {
      const float both[2] = {x[0] * scales.w[0][0], x[1] * scales.w[0][0]};
#pragma unroll
      for (int n = 0; n < T::kNt; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          total[n][k] = add_block<true>(total[n][k], sum[n][k], both[k / 2]);
        }
      }
      return;
    }
  }
#pragma unroll
  for (int n = 0; n < T::kNt; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float scale = T::kFp8 ? x[k / 2] * scales.w[n][k % 2] : 1.0f;
      total[n][k] = add_block<T::kFp8>(total[n][k], sum[n][k], scale);
    }
  }
}

template <typename T>
__device__ inline void store_tile(const NativeProduct& p, int64_t row0, int64_t m0, bool round,
                                  const float (&total)[T::kMt][T::kNt][4]) {
  const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
  const bool pairs = p.y_stride % 2 == 0 && reinterpret_cast<uintptr_t>(p.y) % 8 == 0;
#pragma unroll
  for (int i = 0; i < T::kMt * 2; ++i) {
    const int64_t m = m0 + 16 * (i / 2) + i % 2 * 8 + g;
    if (m >= p.m) continue;
#pragma unroll
    for (int n = 0; n < T::kNt; ++n) {
      const int64_t row = row0 + 8 * n + 2 * t;
      float2 v{total[i / 2][n][i % 2 * 2], total[i / 2][n][i % 2 * 2 + 1]};
      if (round) v = {round_bf16(v.x), round_bf16(v.y)};
      float* y = p.y + m * p.y_stride + row;
      if (pairs && row + 1 < p.w.rows) {
        *reinterpret_cast<float2*>(y) = v;
      } else {
        if (row < p.w.rows) y[0] = v.x;
        if (row + 1 < p.w.rows) y[1] = v.y;
      }
    }
  }
}

template <typename T>
__device__ inline void tile_product(const NativeProduct& p, int64_t r0, int64_t m0, bool round,
                                    std::byte* shared) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int x_row = warp % T::kDown * (T::kMt * 16), w_row = warp / T::kDown * (T::kNt * 8);
  constexpr int kSteps = 4 * T::kHalves;  // of mma in a stage
  const auto stages = static_cast<int>(p.x_stride / (kHalf * T::kHalves));
  std::byte* scales = shared + T::kStages * T::kStageBytes;
  Copies<T> copies(p, r0, m0);
  int begun = 0, begun_at = 0, begun_slot = 0;  // the next copies; where they go
  const auto begin_weights = [&] {
    if (begun >= stages) return;
    copies.start_weights(shared + begun_at);
    if (T::kFp8 && (T::kHalves == 2 || begun % 2 == 0)) {
      copies.start_scales(scales + begun_slot);
      begun_slot =
          begun_slot == (T::kScaleSlots - 1) * T::kScaleBytes ? 0 : begun_slot + T::kScaleBytes;
    }
  };
  const auto begin_x = [&] {
    if (begun < stages) copies.start_x(shared + begun_at);
    ptx::cp_async_commit();
    ++begun;
    begun_at = begun_at == (T::kStages - 1) * T::kStageBytes ? 0 : begun_at + T::kStageBytes;
  };
  for (int s = 0; s < T::kStages - 1; ++s) {
    begin_weights();
    begin_x();
  }
  ptx::cp_async_wait<T::kStages - 2>();
  __syncthreads();
  // All rows of W in the tile under one row of scales?
  const int64_t first_row = (r0 + p.w.row_offset) / kFp8Block;
  const bool one_scale = (r0 + p.w.row_offset + T::kRows - 1) / kFp8Block == first_row;
  float total[T::kMt][T::kNt][4] = {}, sum[T::kMt][T::kNt][4];
  BlockScales<T> block_scales;
  bool begun_block = false;
  // A block's sums go to the totals while the next one's first products run.
  const auto add_last = [&](int m) {
    if (begun_block) add_sums<T>(block_scales, x_row + 16 * m, sum[m], total[m]);
  };
  Operands<T> o(shared, x_row, w_row);
  o.load_x(0, 0);
  o.load_w(0, 0, 0);
  int at = 0, slot = 0;  // offsets of the stage and of the scales in use
  const auto do_step = [&]<int kStep>() {
    constexpr int kInStage = kStep % kSteps, kNext = (kStep + 1) % kSteps;
    if constexpr (kNext == 0) {
      ptx::cp_async_wait<T::kStages - 2>();
      __syncthreads();  // the next stage is there, and this one's operands are read by all
      at = at == (T::kStages - 1) * T::kStageBytes ? 0 : at + T::kStageBytes;
    }
    o.load_x(at, kNext);
    if constexpr (kNext % Operands<T>::kSteps == 0) o.load_w(at, kNext, (kStep + 1) % 8);
    o.template multiply_step<kStep>(sum, add_last);
    // Behind products: the copies of a stage at once would keep the operands waiting.
    if constexpr (kInStage == 0) begin_weights();
    if constexpr (kInStage == 1) begin_x();
  };
  for (int64_t block = p.x_stride / kFp8Block; block > 0; --block) {
    do_step.template operator()<0>();
    do_step.template operator()<1>();
    do_step.template operator()<2>();
    do_step.template operator()<3>();
    do_step.template operator()<4>();
    do_step.template operator()<5>();
    do_step.template operator()<6>();
    do_step.template operator()<7>();
    if constexpr (T::kFp8) block_scales.load(scales + slot, w_row, one_scale);
    begun_block = true;
    slot = slot == (T::kScaleSlots - 1) * T::kScaleBytes ? 0 : slot + T::kScaleBytes;
  }
#pragma unroll
  for (int m = 0; m < T::kMt; ++m) add_last(m);
  ptx::cp_async_wait<0>();
  __syncthreads();  // the next tile may overwrite the stages
  store_tile<T>(p, r0 + w_row, m0 + x_row, round, total);
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
  if (m <= kMostFewRows) return launch_few<kFp8, 2>(context, p, rows, m);
  if (m <= 32) return launch_tile<Tile<kFp8, 32, 64, 2, 128, 4>>(context, p, rows, m);
  const int64_t large = (rows + 127) / 128 * ((m + 127) / 128) * p.count;
  if (m <= 64 || large < context.device()->info().multiprocessors) {
    return launch_tile<Tile<kFp8, 64, 64, 2, 128, 3>>(context, p, rows, m);
  }
  launch_tile<Tile<kFp8, 128, 128, 2, 64, 3>>(context, p, rows, m);
}

}  // namespace native
}  // namespace tamis
