// y = W x, for every format of weight (weight.h), on one or many rows of x.
//
//   y[m, r] = sum_c W[r, c] * x[m, c]        x f32, y f32, W dequantised exactly, sums in float32
//
// The order of the sum depends on the columns alone, never on the number of rows of x, on the
// threads or on what else is in the call: a row gets the same bits alone and in a batch.
// The reference sums in double. The vector implementation, on every instruction set with fma:
//   columns in chunks of 512; in a chunk eight lanes, lane l = fma over columns l, l+8, l+16, ..
//   (absent columns count as 0 * 0 up to a multiple of 32);
//   the chunk's sum ((l0+l4) + (l2+l6)) + ((l1+l5) + (l3+l7)); chunk sums added in order.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/weight.h"

namespace tamis {

struct LinearArgs {
  const float* x = nullptr;  // [m, w.cols]
  int64_t x_stride = 0;      // floats from one row of x to the next
  int64_t m = 0;             // may be 0
  Weight w;
  float* y = nullptr;  // [m, w.rows]
  int64_t y_stride = 0;
};

void linear(KernelContext& context, const LinearArgs& args);

// Several independent products in one parallel loop: projections of the same input, or the experts
// of a layer (grouped linear), each with its own rows. The y of one may not be the x of another.
void linears(KernelContext& context, std::span<const LinearArgs> args);

// The product of DeepSeek's FP8 inference: x is quantised per row and 128 columns (act_quant), W is
// F8_E4M3; y = sum over blocks b of 128 columns of  s_x[m,b] * s_w[r/128,b] * sum_c q_w * q_x,
// float32. The result is not rounded here. InputError if W is not F8_E4M3.
struct LinearFp8Args {
  LinearArgs base;
  bool ue8m0 = false;  // power-of-two scales of x
};
void linear_fp8(KernelContext& context, const LinearFp8Args& args);

}  // namespace tamis
