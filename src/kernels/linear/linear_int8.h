// y = W x with x rounded to 8 bits, for weights in I8 and I4: products of integers.
//
//   per row of x and 32 columns:   s_x = max|x| / 127,   q_x = x * (127 / max|x|), nearest even
//   y[m, r] = sum over groups g of 32 columns of  (s_w[r,g] * s_x[m,g]) * sum_c q_w[r,c] q_x[m,c]
//
// The inner sum is of integers and exact (below 2^24). The outer one is float32 from 0, group after
// group: y = fma(float(inner), s_w * s_x, y). That is the result on every instruction set and in
// the reference, bit for bit, and it depends on the row of x and the row of W alone. A group of x
// whose largest magnitude is below 2^-100 counts as zeros; a group with a NaN or an infinity has
// s_x = NaN, so every output of its row is NaN.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/linear/linear.h"

namespace tamis {

// As linears, with the product above. UsageError for a weight that is neither I8 nor I4.
void linears_int8(KernelContext& context, std::span<const LinearArgs> args);

// One group: n <= 32 values of x to q [n], each in -127..127; returns s_x.
float quantize_int8(const float* x, int64_t n, int8_t* q);

}  // namespace tamis
