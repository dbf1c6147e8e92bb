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
#include "kernels/per_head_linear/transposed.cuh"
#include "kernels/rope/rope_impl.h"
#include "kernels/rope/rope_pair.cuh"

namespace tamis {
namespace {

using namespace transposed;  // this file is a body of that header

constexpr int kManyTokens = 8;  // of a block; or one

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
  __shared__ __align__(16) Parts<kTokens> part;
  multiply_columns<T, kTokens>(a, blockIdx.z, int64_t{blockIdx.x} * kColumns,
                               static_cast<int>(threadIdx.x), int64_t{blockIdx.y} * kTokens,
                               int64_t{gridDim.y} * kTokens, part);
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
