// One small matrix per head, cut out of one weight: the absorbed form of MLA.
//
//   W_h = W[h * head_rows + row_offset, +rows) of a weight W [heads * head_rows, cols]
//   forward     y[t,h,:] = W_h x[t,h,:]      x [t,h,cols] -> y [t,h,rows]     (o = W_UV õ)
//   transposed  y[t,h,:] = W_hᵀ x[t,h,:]     x [t,h,rows] -> y [t,h,cols]     (q̃ = W_UKᵀ q_nope)
//
// Same promise as linear: the bits of a row do not depend on its neighbours. Vector code sums the
// forward direction in the order of linear.h, the transposed one by fma over the rows in order.
// With int8 set and W in I8 or I4 the forward direction is linear_int8; the transposed one cannot
// be: its sum runs over rows, and every row has a scale of its own.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/rope/rope.h"
#include "kernels/weight.h"

namespace tamis {

struct PerHeadLinearArgs {
  const float* x = nullptr;
  int64_t x_token_stride = 0, x_head_stride = 0;
  int64_t num_tokens = 0, num_heads = 0;
  Weight w;
  int64_t head_rows = 0, row_offset = 0, rows = 0;
  bool transposed = false;
  bool int8 = false;
  float* y = nullptr;
  int64_t y_token_stride = 0, y_head_stride = 0;
  // Rotations that run beside it; they may turn other columns of x's rows. Up to four.
  std::span<const RopeArgs> beside = {};
};

void per_head_linear(KernelContext& context, const PerHeadLinearArgs& args);

}  // namespace tamis
