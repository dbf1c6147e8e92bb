// The implementations of per_head_linear.
#pragma once

#include <span>

#include "kernels/linear/linear.h"
#include "kernels/per_head_linear/per_head_linear.h"

namespace tamis {

// The forward direction as one product of `products` for each head.
using LinearCall = void (*)(KernelContext& context, std::span<const LinearArgs> args);
void products_of_heads(KernelContext& context, const PerHeadLinearArgs& args, LinearCall products);

void per_head_linear_cuda(KernelContext& context, const PerHeadLinearArgs& args);
void per_head_linear_simd(KernelContext& context, const PerHeadLinearArgs& args);
void per_head_linear_reference(KernelContext& context, const PerHeadLinearArgs& args);

}  // namespace tamis
