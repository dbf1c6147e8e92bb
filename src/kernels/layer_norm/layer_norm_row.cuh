// One row of layer_norm, for its kernel and that of token_ops.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/layer_norm/layer_norm.h"

namespace tamis {

// By one warp: lane l adds columns l, l + 32, .. in double, then the warp's fixed tree. kAlone:
// there are few rows, so w and b are brought to L1 while the sums are made.
template <bool kAlone = true>
__device__ inline void layer_norm_row(const LayerNormArgs& a, int64_t row) {
  const int64_t lane = threadIdx.x % 32;
  const float* x = a.x + row * a.x_stride;
  float* y = a.y + row * a.y_stride;
  const auto n = static_cast<double>(a.width);
  for (int64_t i = lane; kAlone && i < a.width; i += 32) {
    ptx::prefetch_l1(a.w + i);
    ptx::prefetch_l1(a.b + i);
  }
  double sum = 0, square = 0;
  for (int64_t i = lane; i < a.width; i += 32) sum += x[i];
  const double mean = warp_sum(sum) / n;
  for (int64_t i = lane; i < a.width; i += 32) square += (x[i] - mean) * (x[i] - mean);
  const double scale = 1.0 / sqrt(warp_sum(square) / n + a.eps);
  for (int64_t i = lane; i < a.width; i += 32) {
    y[i] = static_cast<float>((x[i] - mean) * scale * a.w[i] + a.b[i]);
  }
}

}  // namespace tamis
