// rope on CUDA: one thread a pair, pairs of a head in neighbouring threads. Bound by memory: reads
// and writes 4 * dim bytes a head; cos and sin come from L2. The bits are the reference's.
#include "kernels/cuda/launch.cuh"
#include "kernels/rope/rope_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) rope_kernel(const RopeArgs a) {
  const int64_t half = a.dim / 2;
  const int64_t index = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (index >= a.heads * half) return;
  const int64_t t = blockIdx.x, h = index / half, i = index % half;
  float* x = a.x + t * a.token_stride + h * a.head_stride;
  const bool interleaved = a.layout == RopeLayout::kInterleaved;
  float& first = x[interleaved ? 2 * i : i];
  float& second = x[interleaved ? 2 * i + 1 : i + half];
  const float u = first, v = second, cos = a.cos[t * half + i], sin = a.sin[t * half + i];
  first = u * cos - v * sin;
  second = v * cos + u * sin;
}

}  // namespace

void rope_cuda(KernelContext& context, const RopeArgs& a) {
  const int64_t pairs = a.heads * (a.dim / 2);
  if (a.tokens == 0 || pairs == 0) return;
  const dim3 grid(static_cast<unsigned>(a.tokens),
                  static_cast<unsigned>((pairs + kThreads - 1) / kThreads));
  rope_kernel<<<grid, kThreads, 0, stream_of(context)>>>(a);
  check_launch("rope");
}

}  // namespace tamis
