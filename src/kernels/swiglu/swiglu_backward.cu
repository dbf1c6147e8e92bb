// swiglu_backward on CUDA: four elements a thread, with 16-byte accesses where the arrays allow.
// Bound by memory: 20 bytes an element, or 16.
#include <algorithm>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/swiglu/swiglu_backward_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256, kEach = 4;

struct Pair {
  float dgate, dup;
};

__device__ Pair gradients(float g, float u, float dy) {
  const float s = 1 / (1 + expf(-g));
  return {dy * u * s * (1 + g * (1 - s)), dy * g * s};
}

__device__ bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(float4) == 0;
}

// Where element i is in the arrays of bf16.
__device__ int64_t place(const SwigluBackwardArgs<float>& a, int64_t i) {
  if (a.bf16_stride == 0) return i;
  const bool is_short = i <= UINT32_MAX && a.width <= UINT32_MAX;  // divided faster
  const int64_t row =
      is_short ? static_cast<uint32_t>(i) / static_cast<uint32_t>(a.width) : i / a.width;
  return i + row * (a.bf16_stride - a.width);
}

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const SwigluBackwardArgs<float> a) {
  const int64_t n = a.rows * a.width;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kEach;
  const bool whole = a.bf16_stride == 0 || (a.width % kEach == 0 && a.bf16_stride % kEach == 0);
  const bool wide = whole && aligned(a.gate) && aligned(a.up) && aligned(a.dy) &&
                    aligned(a.dgate) && aligned(a.dup) && aligned(a.dgate_bf16) &&
                    aligned(a.dup_bf16);
  if (first + kEach <= n && wide) {
    const int64_t at = first / kEach;
    const float4 g = reinterpret_cast<const float4*>(a.gate)[at];
    const float4 u = reinterpret_cast<const float4*>(a.up)[at];
    const float4 dy = reinterpret_cast<const float4*>(a.dy)[at];
    const Pair x = gradients(g.x, u.x, dy.x), y = gradients(g.y, u.y, dy.y);
    const Pair z = gradients(g.z, u.z, dy.z), w = gradients(g.w, u.w, dy.w);
    if (a.dgate_bf16 != nullptr) {
      const int64_t to = place(a, first) / kEach;
      reinterpret_cast<uint2*>(a.dgate_bf16)[to] =
          make_uint2(ptx::pack_bf16(x.dgate, y.dgate), ptx::pack_bf16(z.dgate, w.dgate));
      reinterpret_cast<uint2*>(a.dup_bf16)[to] =
          make_uint2(ptx::pack_bf16(x.dup, y.dup), ptx::pack_bf16(z.dup, w.dup));
    } else {
      reinterpret_cast<float4*>(a.dgate)[at] = make_float4(x.dgate, y.dgate, z.dgate, w.dgate);
      reinterpret_cast<float4*>(a.dup)[at] = make_float4(x.dup, y.dup, z.dup, w.dup);
    }
    return;
  }
  for (int64_t i = first; i < min(first + kEach, n); ++i) {
    const Pair d = gradients(a.gate[i], a.up[i], a.dy[i]);
    if (a.dgate_bf16 != nullptr) {
      a.dgate_bf16[place(a, i)] = float_to_bf16_bits(d.dgate);
      a.dup_bf16[place(a, i)] = float_to_bf16_bits(d.dup);
    } else {
      a.dgate[i] = d.dgate;
      a.dup[i] = d.dup;
    }
  }
}

}  // namespace

void swiglu_backward_cuda(KernelContext& context, const SwigluBackwardArgs<float>& a) {
  const int64_t n = a.rows * a.width;
  if (n == 0) return;
  constexpr int64_t kBlock = int64_t{kThreads} * kEach;
  swiglu_backward_kernel<<<static_cast<unsigned>((n + kBlock - 1) / kBlock), kThreads, 0,
                           stream_of(context)>>>(a);
  check_launch("swiglu_backward");
}

}  // namespace tamis
