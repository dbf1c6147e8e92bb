// The implementations of adamw.
#pragma once

#include <vector>

#include "kernels/adamw/adamw.h"

namespace tamis {

// What every value of a step is computed with, rounded to float once.
struct AdamwFactors {
  float b1, b2, c1, c2, keep, rate, root, eps, scale;
};
AdamwFactors adamw_factors(const AdamwArgs& args);

void adamw_cuda(KernelContext& context, const AdamwArgs& args);
std::vector<double> squares_by_block_cuda(KernelContext& context, const float* x, int64_t n);

}  // namespace tamis
