// cross_entropy on CUDA: one block of 512 threads a row; the maximum, then the sum of exponentials
// in double, thread i over columns i, i+512, .., then the block's fixed tree. The row is read
// twice, mostly from L2 the second time; bound by the double exponentials on GPUs with few double
// units. A NaN is passed over by the maximum and reaches the sum.
#include "kernels/cross_entropy/cross_entropy_impl.h"
#include "kernels/cuda/launch.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const CrossEntropyArgs a) {
  const int64_t row = blockIdx.x;
  const float* x = a.logits + row * a.vocabulary;
  float own = -INFINITY;
  for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) own = fmaxf(own, x[v]);
  const double top = block_max<kThreads>(own);
  double sum = 0;
  for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) sum += exp(x[v] - top);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.loss[row] = log(sum) + top - x[a.targets[row]];
}

}  // namespace

void cross_entropy_cuda(KernelContext& context, const CrossEntropyArgs& a) {
  if (a.rows == 0) return;
  cross_entropy_kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream_of(context)>>>(a);
  check_launch("cross_entropy");
}

}  // namespace tamis
