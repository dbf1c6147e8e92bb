// moe_combine_backward and moe_permute_backward on CUDA. Combine: a warp a pair, the dot product in
// double, lane l over columns l, l+32, ..; bound by memory. Permute: a block a token, slots in
// order; the bits are the reference's.
#include "kernels/cuda/launch.cuh"
#include "kernels/moe_permute/moe_permute_backward_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kWarps * 32, 4)
    combine_backward_kernel(const MoeCombineBackwardArgs<float> a) {
  const int64_t pair = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (pair >= a.tokens * a.num_chosen) return;
  const int64_t row = a.row_of[pair];
  const float* dy = a.dy + pair / a.num_chosen * a.width;
  const float* y = a.rows + row * a.width;
  const float weight = a.weights[pair];
  double dot = 0;
  for (int64_t i = threadIdx.x % 32; i < a.width; i += 32) {
    dot += static_cast<double>(dy[i]) * y[i];
    a.drows[row * a.width + i] = weight * dy[i];
  }
  dot = warp_sum(dot);
  if (threadIdx.x % 32 == 0) a.dweights[pair] = static_cast<float>(dot);
}

__global__ void __launch_bounds__(kThreads)
    permute_backward_kernel(const MoePermuteBackwardArgs<float> a) {
  const int32_t* row_of = a.row_of + blockIdx.x * a.num_chosen;
  float* dx = a.dx + blockIdx.x * a.width;
  const auto chosen = static_cast<int>(a.num_chosen);
  for (int64_t c = threadIdx.x; c < a.width; c += kThreads) {
    float sum = dx[c];
    for (int i = 0; i < chosen; ++i) sum += a.drows[row_of[i] * a.width + c];
    dx[c] = sum;
  }
}

}  // namespace

void moe_combine_backward_cuda(KernelContext& context, const MoeCombineBackwardArgs<float>& a) {
  const int64_t pairs = a.tokens * a.num_chosen;
  if (pairs == 0) return;
  combine_backward_kernel<<<static_cast<unsigned>((pairs + kWarps - 1) / kWarps), kWarps * 32, 0,
                            stream_of(context)>>>(a);
  check_launch("moe_combine_backward");
}

void moe_permute_backward_cuda(KernelContext& context, const MoePermuteBackwardArgs<float>& a) {
  if (a.tokens == 0 || a.width == 0) return;
  permute_backward_kernel<<<static_cast<unsigned>(a.tokens), kThreads, 0, stream_of(context)>>>(a);
  check_launch("moe_permute_backward");
}

}  // namespace tamis
