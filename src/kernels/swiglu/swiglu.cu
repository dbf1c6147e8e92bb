// swiglu on CUDA: one element a thread and turn, four with 16-byte accesses where the rows allow.
// Bound by memory: reads gate and up, writes y, 12 bytes an element.
#include "kernels/cuda/launch.cuh"
#include "kernels/swiglu/swiglu_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;

__device__ float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

__global__ void __launch_bounds__(kThreads) swiglu_kernel(const SwigluArgs a, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) a.y[i] = gated(a.gate[i], a.up[i]);
}

__global__ void __launch_bounds__(kThreads) swiglu_kernel_x4(const SwigluArgs a, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count / 4) return;
  const float4 g = reinterpret_cast<const float4*>(a.gate)[i];
  const float4 u = reinterpret_cast<const float4*>(a.up)[i];
  reinterpret_cast<float4*>(a.y)[i] =
      make_float4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w));
}

bool aligned(const float* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(float4) == 0; }

}  // namespace

void swiglu_cuda(KernelContext& context, const SwigluArgs& a) {
  const int64_t count = a.rows * a.width;
  if (count == 0) return;
  if (count % 4 == 0 && aligned(a.gate) && aligned(a.up) && aligned(a.y)) {
    const auto blocks = static_cast<unsigned>((count / 4 + kThreads - 1) / kThreads);
    swiglu_kernel_x4<<<blocks, kThreads, 0, stream_of(context)>>>(a, count);
  } else {
    const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
    swiglu_kernel<<<blocks, kThreads, 0, stream_of(context)>>>(a, count);
  }
  check_launch("swiglu");
}

}  // namespace tamis
