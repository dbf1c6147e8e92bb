// swiglu on CUDA: four elements a thread, with 16-byte accesses where the arrays allow. Bound by
// memory: reads gate and up, writes y, 12 bytes an element, or 10.
#include <algorithm>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/swiglu/swiglu_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256, kEach = 4;

using Activations = Several<SwigluArgs>;

__device__ float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

__device__ bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(float4) == 0;
}

__global__ void __launch_bounds__(kThreads) swiglu_kernel(const Activations activations) {
  const SwigluArgs a = activations.list[blockIdx.y];
  const int64_t count = a.rows * a.width;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kEach;
  if (first + kEach <= count && aligned(a.gate) && aligned(a.up) && aligned(a.y) &&
      aligned(a.y_bf16)) {
    const float4 g = reinterpret_cast<const float4*>(a.gate)[first / kEach];
    const float4 u = reinterpret_cast<const float4*>(a.up)[first / kEach];
    const float4 y =
        make_float4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w));
    if (a.y_bf16 != nullptr) {
      reinterpret_cast<uint2*>(a.y_bf16)[first / kEach] =
          make_uint2(ptx::pack_bf16(y.x, y.y), ptx::pack_bf16(y.z, y.w));
    } else {
      reinterpret_cast<float4*>(a.y)[first / kEach] = y;
    }
    return;
  }
  for (int64_t i = first; i < min(first + kEach, count); ++i) {
    const float y = gated(a.gate[i], a.up[i]);
    if (a.y_bf16 != nullptr) {
      a.y_bf16[i] = float_to_bf16_bits(y);
    } else {
      a.y[i] = y;
    }
  }
}

}  // namespace

void swiglu_cuda(KernelContext& context, const SwigluArgs& a) { swiglus_cuda(context, {&a, 1}); }

void swiglus_cuda(KernelContext& context, std::span<const SwigluArgs> args) {
  in_groups(args, [&](const Activations& activations) {
    int64_t count = 0;
    for (int i = 0; i < activations.count; ++i) {
      count = std::max(count, activations.list[i].rows * activations.list[i].width);
    }
    if (count == 0) return;
    constexpr int64_t kBlock = kThreads * kEach;
    const dim3 grid(static_cast<unsigned>((count + kBlock - 1) / kBlock),
                    static_cast<unsigned>(activations.count));
    swiglu_kernel<<<grid, kThreads, 0, stream_of(context)>>>(activations);
    check_launch("swiglu");
  });
}

}  // namespace tamis
