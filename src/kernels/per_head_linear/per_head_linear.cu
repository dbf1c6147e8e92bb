// per_head_linear on CUDA.
//
// Forward: the heads are products of linear (linear_exact.cuh), with its order of sums.
//
// Transposed: y[t,h,c] = sum_r W_h[r,c] x[t,h,r]. Rows in chunks of 32, added by fma in order;
// chunk sums added in order. A block has 128 columns of one head and 8 tokens (or 1): warp q takes
// chunks q, q+4,
// ..; a lane has four neighbouring columns, so a warp reads whole lines of W. After every four
// chunks their sums meet in shared memory. Bound by memory for few tokens: W once per 8 tokens.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/linear/linear_products.h"
#include "kernels/linear/products.cuh"
#include "kernels/per_head_linear/per_head_linear_impl.h"
#include "kernels/rope/rope_impl.h"
#include "kernels/rope/rope_pair.cuh"

namespace tamis {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kColumns = 128;   // of a block, four a lane
constexpr int kManyTokens = 8;  // of a block; or one
constexpr int64_t kChunk = 32;

static_assert(kColumns == kThreads, "a thread adds the chunk sums of one column");

__device__ inline void add4(const float4& w, float x, float (&sum)[4]) {
  sum[0] = fmaf(w.x, x, sum[0]);
  sum[1] = fmaf(w.y, x, sum[1]);
  sum[2] = fmaf(w.z, x, sum[2]);
  sum[3] = fmaf(w.w, x, sum[3]);
}

// The sum of one chunk for four columns and kTokens tokens. `whole`: the block's columns and the
// chunk's rows lie inside a weight that is piecewise(); then sixteen rows are on their way at once,
// and each lane brings x of one row.
template <DType T, int kTokens>
__device__ void chunk_sum(const PerHeadLinearArgs& a, const Weight& w, int64_t r0, int64_t col,
                          int64_t t0, bool whole, float (&sum)[kTokens][4]) {
  constexpr int kAhead = 16;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float* x = a.x + blockIdx.z * a.x_head_stride;
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

// The share of a block of x and y in the pairs of all tokens.
__device__ inline void rotate(const RopeArgs& a) {
  const int64_t pairs = a.heads * (a.dim / 2);
  for (int64_t t = blockIdx.y; t < a.tokens; t += gridDim.y) {
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pairs;
         i += int64_t{gridDim.x} * kThreads) {
      rope_pair(a, t, i);
    }
  }
}

template <DType T, int kTokens>
__global__ void __launch_bounds__(kThreads)
    transposed_kernel(const PerHeadLinearArgs a, const Several<RopeArgs> beside) {
  if (blockIdx.z >= a.num_heads) return rotate(beside.list[blockIdx.z - a.num_heads]);
  __shared__ float part[kWarps][kTokens][kColumns];
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t c0 = int64_t{blockIdx.x} * kColumns, col = c0 + threadIdx.x;
  Weight w = a.w;
  w.data += (blockIdx.z * a.head_rows + a.row_offset) * w.row_bytes;
  w.row_offset += blockIdx.z * a.head_rows + a.row_offset;
  w.rows = a.rows;
  float* y = a.y + blockIdx.z * a.y_head_stride;
  const bool inside = piecewise<T>(w) && c0 + kColumns <= w.cols;
  for (int64_t t0 = int64_t{blockIdx.y} * kTokens; t0 < a.num_tokens;
       t0 += int64_t{gridDim.y} * kTokens) {
    float total[kTokens] = {};
    for (int64_t r0 = 0; r0 < a.rows; r0 += kWarps * kChunk) {
      float sum[kTokens][4] = {};
      const int64_t first = r0 + warp * kChunk;
      chunk_sum<T, kTokens>(a, w, first, c0 + lane * 4, t0, inside && first + kChunk <= a.rows,
                            sum);
      __syncthreads();
      for (int t = 0; t < kTokens; ++t) {
        *reinterpret_cast<float4*>(&part[warp][t][lane * 4]) =
            make_float4(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
      }
      __syncthreads();
      for (int q = 0; q < kWarps; ++q) {
        for (int t = 0; t < kTokens; ++t) total[t] += part[q][t][threadIdx.x];
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      if (t0 + t < a.num_tokens && col < w.cols) y[(t0 + t) * a.y_token_stride + col] = total[t];
    }
  }
}

template <DType T, int kTokens>
void launch_tokens(KernelContext& context, const PerHeadLinearArgs& a) {
  const dim3 grid(
      static_cast<unsigned>((a.w.cols + kColumns - 1) / kColumns),
      static_cast<unsigned>(std::min<int64_t>((a.num_tokens + kTokens - 1) / kTokens, 65535)),
      static_cast<unsigned>(a.num_heads + static_cast<int64_t>(a.beside.size())));
  Several<RopeArgs> beside;
  for (const RopeArgs& r : a.beside) beside.list[beside.count++] = r;
  transposed_kernel<T, kTokens><<<grid, kThreads, 0, stream_of(context)>>>(a, beside);
  check_launch("per_head_linear (transposed)");
}

template <DType T>
void launch_transposed(KernelContext& context, const PerHeadLinearArgs& a) {
  a.num_tokens == 1 ? launch_tokens<T, 1>(context, a) : launch_tokens<T, kManyTokens>(context, a);
}

void run_transposed(KernelContext& context, const PerHeadLinearArgs& a) {
  switch (a.w.dtype) {
    case DType::kF32:
      return launch_transposed<DType::kF32>(context, a);
    case DType::kF16:
      return launch_transposed<DType::kF16>(context, a);
    case DType::kBF16:
      return launch_transposed<DType::kBF16>(context, a);
    case DType::kF8E4M3:
      return launch_transposed<DType::kF8E4M3>(context, a);
    case DType::kI8:
      return launch_transposed<DType::kI8>(context, a);
    default:
      return launch_transposed<DType::kI4>(context, a);
  }
}

}  // namespace

void per_head_linear_cuda(KernelContext& context, const PerHeadLinearArgs& a) {
  if (a.num_tokens == 0 || a.num_heads == 0) return;
  if (a.transposed) {
    if (a.w.cols > 0) return run_transposed(context, a);
    return ropes_cuda(context, a.beside);
  }
  Products p;
  p.count = static_cast<int>(a.num_heads);
  p.heads = true;
  p.head_rows = a.head_rows;
  p.rows = a.rows;
  p.x_head_stride = a.x_head_stride;
  p.y_head_stride = a.y_head_stride;
  p.list[0] = {a.x, a.x_token_stride, a.num_tokens, a.w, a.y, a.y_token_stride};
  p.list[0].w.data += a.row_offset * a.w.row_bytes;
  p.list[0].w.row_offset += a.row_offset;
  products_exact(context, a.w.dtype, p, a.rows, a.num_tokens);
}

}  // namespace tamis
