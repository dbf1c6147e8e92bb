// One row of rms_norm, for its kernel and that of token_ops.
#pragma once

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/rms_norm/rms_norm.h"

namespace tamis {

// By a block of kRowThreads: thread i adds columns i, i + 256, .. in double, then the block's fixed
// tree. copy [width]: where the result goes as well, or null.
__device__ inline void rms_norm_row(const RmsNormArgs& a, int64_t row, float* copy = nullptr) {
  constexpr int kThreads = kRowThreads;
  float* x = a.x + row * a.x_stride;
  float* y = a.y + row * a.y_stride;
  const float* delta = a.delta == nullptr ? nullptr : a.delta + row * a.width;
  if (threadIdx.x < a.width) ptx::prefetch_l1(a.w + threadIdx.x);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) {
    const float v = delta == nullptr ? x[i] : x[i] + delta[i];
    sum += static_cast<double>(v) * v;
  }
  const auto mean = static_cast<float>(block_sum<kThreads>(sum) / static_cast<double>(a.width));
  const float scale = 1.0f / sqrtf(mean + a.eps);
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) {
    const float v = delta == nullptr ? x[i] : x[i] + delta[i];
    const float exact = a.w[i] * (v * scale), normed = a.round_bf16 ? round_bf16(exact) : exact;
    if (a.y != nullptr) y[i] = normed;
    if (copy != nullptr) copy[i] = normed;
    if (a.y_bf16 != nullptr) a.y_bf16[row * a.width + i] = float_to_bf16_bits(exact);
    if (delta != nullptr) x[i] = a.round_bf16 ? round_bf16(v) : v;
  }
}

}  // namespace tamis
