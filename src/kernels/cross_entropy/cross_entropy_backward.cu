// cross_entropy_backward on CUDA: one block of 512 threads a row, thread i over columns i, i+512,
// ..: the maximum, then the exponentials and their sum in double by the block's fixed tree, then
// the gradient in their place. The row is read three times, from L2 after the first.
#include "kernels/cross_entropy/cross_entropy_backward_impl.h"
#include "kernels/cuda/launch.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(const CrossEntropyBackwardArgs<float> a) {
  const int64_t row = blockIdx.x;
  float* x = a.logits + row * a.vocabulary;
  const int32_t target = a.targets[row];
  if (target < 0) {
    for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) x[v] = 0;
    if (threadIdx.x == 0) a.loss[row] = 0;
    return;
  }
  const float at_target = x[target];
  float own = -INFINITY;
  for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) own = fmaxf(own, x[v]);
  const float top = block_max<kThreads>(own);  // and every thread has read the target's value
  double sum = 0;
  for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) {
    const float e = expf(x[v] - top);
    x[v] = e;
    sum += e;
  }
  sum = block_sum<kThreads>(sum);
  const auto scale = static_cast<float>(a.scale / sum), whole = static_cast<float>(a.scale);
  for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) {
    const float y = x[v] * scale;
    x[v] = v == target ? y - whole : y;
  }
  if (threadIdx.x == 0) a.loss[row] = log(sum) + static_cast<double>(top) - at_target;
}

}  // namespace

void cross_entropy_backward_cuda(KernelContext& context, const CrossEntropyBackwardArgs<float>& a) {
  if (a.rows == 0) return;
  cross_entropy_backward_kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream_of(context)>>>(
      a);
  check_launch("cross_entropy_backward");
}

}  // namespace tamis
