// swiglu_backward on CUDA: an element a thread, neighbours side by side. Bound by memory: 20 bytes
// an element.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/swiglu/swiglu_backward_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // a thread goes on with later elements

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const SwigluBackwardArgs<float> a) {
  const int64_t n = a.rows * a.width;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * kThreads) {
    const float g = a.gate[i], u = a.up[i], dy = a.dy[i];
    const float s = 1 / (1 + expf(-g));
    a.dgate[i] = dy * u * s * (1 + g * (1 - s));
    a.dup[i] = dy * g * s;
  }
}

}  // namespace

void swiglu_backward_cuda(KernelContext& context, const SwigluBackwardArgs<float>& a) {
  const int64_t n = a.rows * a.width;
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (n + kThreads - 1) / kThreads));
  swiglu_backward_kernel<<<blocks, kThreads, 0, stream_of(context)>>>(a);
  check_launch("swiglu_backward");
}

}  // namespace tamis
