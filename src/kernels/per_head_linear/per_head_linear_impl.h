// The implementations of per_head_linear.
#pragma once

#include "kernels/per_head_linear/per_head_linear.h"

namespace tamis {

void per_head_linear_cuda(KernelContext& context, const PerHeadLinearArgs& args);
void per_head_linear_simd(KernelContext& context, const PerHeadLinearArgs& args);
void per_head_linear_reference(KernelContext& context, const PerHeadLinearArgs& args);

}  // namespace tamis
