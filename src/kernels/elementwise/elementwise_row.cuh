// Rows of the elementwise operations, for their kernels and that of token_ops.
#pragma once

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/elementwise/elementwise.h"

namespace tamis {

// By a whole block.
__device__ inline void check_row(const CheckFiniteArgs& a, int64_t row) {
  bool bad = false;
  for (int64_t i = threadIdx.x; i < a.width; i += blockDim.x) {
    bad |= !isfinite(a.x[row * a.width + i]);
  }
  if (!__syncthreads_or(bad) || threadIdx.x != 0) return;
  const int64_t token = a.token == nullptr ? row : a.token[row];
  atomicCAS(&a.failed[a.sequence[token]], -1, a.mark);
}

__device__ inline void check_flag(const CheckFlagsArgs& a, int64_t t) {
  if (a.flags[t] != 0) atomicCAS(&a.failed[a.sequence[t]], -1, a.mark);
}

namespace query_scale {

constexpr float kSmallestAmax = 1e-4F;

// The largest |x| of up to 128 values, over the lanes of a warp; NaN does not count, as in
// act_quant_row.
__device__ inline float block_amax(const float* x, int64_t n) {
  float amax = kSmallestAmax;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) amax = fmaxf(amax, fabsf(x[i]));
  for (int offset = 16; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, offset));
  }
  return amax;
}

__device__ inline float scale_of(const float* x, int64_t n, bool ue8m0) {
  const float scale = block_amax(x, n) * (1.0F / 448.0F);
  return ue8m0 ? ceil_power_of_two(scale) : scale;
}

}  // namespace query_scale

// By one warp.
__device__ inline void index_query_row(const IndexQueryArgs& a, int64_t row) {
  const int64_t lane = threadIdx.x % 32;
  float w = a.w[row] * a.head_scale;
  if (a.native) {
    float* q = a.q + row * a.dim;
    const float scale0 = query_scale::scale_of(q, a.dim < kFp8Block ? a.dim : kFp8Block, a.ue8m0);
    for (int64_t begin = 0; begin < a.dim; begin += kFp8Block) {
      const int64_t n = a.dim - begin < kFp8Block ? a.dim - begin : kFp8Block;
      const float scale = begin == 0 ? scale0 : query_scale::scale_of(q + begin, n, a.ue8m0);
      for (int64_t i = begin + lane; i < begin + n; i += 32) {
        q[i] = e4m3_bits_to_float(float_to_e4m3_bits(q[i] / scale)) * (scale / scale0);
      }
    }
    w = round_bf16(w) * scale0;
  }
  if (lane == 0) a.w[row] = w * a.dim_scale;
}

}  // namespace tamis
