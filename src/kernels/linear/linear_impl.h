// The implementations of linear, for linear.cpp and its test.
#pragma once

#include "kernels/linear/linear.h"

namespace tamis {

void linears_cuda(KernelContext& context, const std::span<const LinearArgs>& args);
void linears_simd(KernelContext& context, const std::span<const LinearArgs>& args);
void linears_reference(KernelContext& context, const std::span<const LinearArgs>& args);
void linear_fp8_cuda(KernelContext& context, const LinearFp8Args& args);
void linear_fp8_simd(KernelContext& context, const LinearFp8Args& args);
void linear_fp8_reference(KernelContext& context, const LinearFp8Args& args);

}  // namespace tamis
