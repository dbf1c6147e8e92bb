// rope_turn on CUDA: one thread a pair. Bound by memory; the bits are the reference's.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/rope/rope_backward_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // a thread goes on with later pairs

__global__ void __launch_bounds__(kThreads) turn_kernel(const RopeTurnArgs<float> a) {
  const int64_t half = a.dim / 2, each = a.heads * half;
  for (int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x; n < a.tokens * each;
       n += int64_t{gridDim.x} * kThreads) {
    const bool is_short = n <= UINT32_MAX;  // divided faster
    const int64_t t = is_short ? static_cast<uint32_t>(n) / static_cast<uint32_t>(each) : n / each;
    const auto of_token = static_cast<uint32_t>(n - t * each);
    const int64_t h = of_token / static_cast<uint32_t>(half), i = of_token - h * half;
    float* x = a.x + t * a.token_stride + h * a.head_stride;
    const bool interleaved = a.layout == RopeLayout::kInterleaved;
    float& first = x[interleaved ? 2 * i : i];
    float& second = x[interleaved ? 2 * i + 1 : i + half];
    const float c = a.cos[t * half + i];
    const float s = a.back ? -a.sin[t * half + i] : a.sin[t * half + i];
    const float p = first, q = second;
    first = p * c - q * s;
    second = q * c + p * s;
  }
}

}  // namespace

void rope_turn_cuda(KernelContext& context, const RopeTurnArgs<float>& a) {
  const int64_t n = a.tokens * a.heads * (a.dim / 2);
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (n + kThreads - 1) / kThreads));
  turn_kernel<<<blocks, kThreads, 0, stream_of(context)>>>(a);
  check_launch("rope_backward");
}

}  // namespace tamis
