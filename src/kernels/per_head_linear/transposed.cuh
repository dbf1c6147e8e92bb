// The transposed product of per_head_linear, for its kernel and that of absorb_select. A group of
// 128 threads has 128 columns of a head; per_head_linear.cu says in which order they are summed.
#pragma once

#include "kernels/linear/products.cuh"
#include "kernels/per_head_linear/per_head_linear.h"

namespace tamis::transposed {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kColumns = 128;  // of a group, four a lane
constexpr int64_t kChunk = 32;

static_assert(kColumns == kThreads, "a thread adds the chunk sums of one column");

__device__ inline void add4(const float4& w, float x, float (&sum)[4]) {
  sum[0] = fmaf(w.x, x, sum[0]);
  sum[1] = fmaf(w.y, x, sum[1]);
  sum[2] = fmaf(w.z, x, sum[2]);
  sum[3] = fmaf(w.w, x, sum[3]);
}

// The sum of one chunk for four columns of a head and kTokens tokens. `whole`: the group's columns
// and the chunk's rows lie inside a weight that is piecewise(); then sixteen rows are on their way
// at once, and each lane brings x of one row.
template <DType T, int kTokens>
__device__ inline void chunk_sum(const PerHeadLinearArgs& a, const Weight& w, int64_t head,
                                 int64_t r0, int64_t col, int64_t t0, bool whole,
                                 float (&sum)[kTokens][4]) {
  constexpr int kAhead = 16;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float* x = a.x + head * a.x_head_stride;
  if (!whole) {
    const bool fast = piecewise<T>(w);
    for (int64_t r = r0; r < min(r0 + kChunk, a.rows); ++r) {
      const float4 v = weight4<T>(w, fast, r, col);
      for (int t = 0; t < kTokens; ++t) {
        add4(v, x[min(t0 + t, a.num_tokens - 1) * a.x_token_stride + r], sum[t]);
      }
    }
    return;
  }
  float mine[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    mine[t] = x[min(t0 + t, a.num_tokens - 1) * a.x_token_stride + r0 + lane];
  }
#pragma unroll
  for (int half = 0; half < kChunk; half += kAhead) {
    float4 v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) v[i] = inner_weight4<T>(w, r0 + half + i, col);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        add4(v[i], __shfl_sync(0xFFFFFFFFu, mine[t], half + i), sum[t]);
      }
    }
  }
}

template <int kTokens>
using Parts = float[kWarps][kTokens][kColumns];

// Columns c0 .. of a head by the group's thread `thread`, for every step-th kTokens tokens from t0
// on. All threads of the block call it, those whose columns lie outside, too.
template <DType T, int kTokens>
__device__ inline void multiply_columns(const PerHeadLinearArgs& a, int64_t head, int64_t c0,
                                        int thread, int64_t t0, int64_t step,
                                        Parts<kTokens>& part) {
  const int warp = thread / 32, lane = thread % 32;
  const int64_t col = c0 + thread;
  Weight w = a.w;
  w.data += (head * a.head_rows + a.row_offset) * w.row_bytes;
  w.row_offset += head * a.head_rows + a.row_offset;
  w.rows = a.rows;
  float* y = a.y + head * a.y_head_stride;
  const bool inside = piecewise<T>(w) && c0 + kColumns <= w.cols;
  for (; t0 < a.num_tokens; t0 += step) {
    float total[kTokens] = {};
    for (int64_t r0 = 0; r0 < a.rows; r0 += kWarps * kChunk) {
      float sum[kTokens][4] = {};
      const int64_t first = r0 + warp * kChunk;
      chunk_sum<T, kTokens>(a, w, head, first, c0 + lane * 4, t0,
                            inside && first + kChunk <= a.rows, sum);
      __syncthreads();
      for (int t = 0; t < kTokens; ++t) {
        *reinterpret_cast<float4*>(&part[warp][t][lane * 4]) =
            make_float4(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
      }
      __syncthreads();
      for (int q = 0; q < kWarps; ++q) {
        for (int t = 0; t < kTokens; ++t) total[t] += part[q][t][thread];
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      if (t0 + t < a.num_tokens && col < w.cols) y[(t0 + t) * a.y_token_stride + col] = total[t];
    }
  }
}

}  // namespace tamis::transposed
