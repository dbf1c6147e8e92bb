// moe_combine_backward and moe_permute_backward on CUDA. Combine: a warp a pair, the dot product in
// double, lane l over columns l, l+32, .., or over fours of them; bound by memory. Permute: a warp
// a token, slots in order; the bits are the reference's.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/moe_permute/moe_permute_backward_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 8;

// kWide: four columns of a lane at a time.
template <bool kWide>
__global__ void __launch_bounds__(kWarps * 32)
    combine_backward_kernel(const MoeCombineBackwardArgs<float> a) {
  constexpr int kEach = kWide ? 4 : 1;
  const int64_t pair = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (pair >= a.tokens * a.num_chosen) return;
  const int64_t row = a.row_of[pair];
  const float* from_dy = a.dy + pair / a.num_chosen * a.width;
  const float* from_y = a.rows + row * a.width;
  const float weight = a.weights[pair];
  double dot = 0;
#pragma unroll 4
  for (int64_t c = threadIdx.x % 32 * kEach; c < a.width; c += 32 * kEach) {
    if constexpr (kWide) {
      const float4 dy = *reinterpret_cast<const float4*>(from_dy + c);
      const float4 y = *reinterpret_cast<const float4*>(from_y + c);
      dot += static_cast<double>(dy.x) * y.x;
      dot += static_cast<double>(dy.y) * y.y;
      dot += static_cast<double>(dy.z) * y.z;
      dot += static_cast<double>(dy.w) * y.w;
      const float4 d = make_float4(weight * dy.x, weight * dy.y, weight * dy.z, weight * dy.w);
      if (a.drows_bf16 != nullptr) {
        *reinterpret_cast<uint2*>(a.drows_bf16 + row * a.width + c) =
            make_uint2(ptx::pack_bf16(d.x, d.y), ptx::pack_bf16(d.z, d.w));
      } else {
        *reinterpret_cast<float4*>(a.drows + row * a.width + c) = d;
      }
    } else {
      dot += static_cast<double>(from_dy[c]) * from_y[c];
      const float d = weight * from_dy[c];
      if (a.drows_bf16 != nullptr) {
        a.drows_bf16[row * a.width + c] = float_to_bf16_bits(d);
      } else {
        a.drows[row * a.width + c] = d;
      }
    }
  }
  dot = warp_sum(dot);
  if (threadIdx.x % 32 == 0) a.dweights[pair] = static_cast<float>(dot);
}

// A warp a token; kWide as above.
template <bool kWide>
__global__ void __launch_bounds__(kWarps * 32)
    permute_backward_kernel(const MoePermuteBackwardArgs<float> a) {
  constexpr int kEach = kWide ? 4 : 1;
  const int64_t t = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (t >= a.tokens) return;
  const int32_t* row_of = a.row_of + t * a.num_chosen;
  float* dx = a.dx + t * a.width;
  const auto chosen = static_cast<int>(a.num_chosen);
  for (int64_t c = threadIdx.x % 32 * kEach; c < a.width; c += 32 * kEach) {
    if constexpr (kWide) {
      float4 sum = *reinterpret_cast<const float4*>(dx + c);
#pragma unroll 4
      for (int i = 0; i < chosen; ++i) {
        const float4 d = *reinterpret_cast<const float4*>(a.drows + row_of[i] * a.width + c);
        sum = make_float4(sum.x + d.x, sum.y + d.y, sum.z + d.z, sum.w + d.w);
      }
      *reinterpret_cast<float4*>(dx + c) = sum;
    } else {
      float sum = dx[c];
      for (int i = 0; i < chosen; ++i) sum += a.drows[row_of[i] * a.width + c];
      dx[c] = sum;
    }
  }
}

}  // namespace

void moe_combine_backward_cuda(KernelContext& context, const MoeCombineBackwardArgs<float>& a) {
  const int64_t pairs = a.tokens * a.num_chosen;
  if (pairs == 0) return;
  const auto all = reinterpret_cast<uintptr_t>(a.rows) | reinterpret_cast<uintptr_t>(a.dy) |
                   reinterpret_cast<uintptr_t>(a.drows) | reinterpret_cast<uintptr_t>(a.drows_bf16);
  const auto kernel = a.width % 4 == 0 && all % 16 == 0 ? combine_backward_kernel<true>
                                                        : combine_backward_kernel<false>;
  kernel<<<static_cast<unsigned>((pairs + kWarps - 1) / kWarps), kWarps * 32, 0,
           stream_of(context)>>>(a);
  check_launch("moe_combine_backward");
}

void moe_permute_backward_cuda(KernelContext& context, const MoePermuteBackwardArgs<float>& a) {
  if (a.tokens == 0 || a.width == 0) return;
  const auto all = reinterpret_cast<uintptr_t>(a.dx) | reinterpret_cast<uintptr_t>(a.drows);
  const auto kernel = a.width % 4 == 0 && all % 16 == 0 ? permute_backward_kernel<true>
                                                        : permute_backward_kernel<false>;
  kernel<<<static_cast<unsigned>((a.tokens + kWarps - 1) / kWarps), kWarps * 32, 0,
           stream_of(context)>>>(a);
  check_launch("moe_permute_backward");
}

}  // namespace tamis
