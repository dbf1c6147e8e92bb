// The implementations of linear_int8, for linear_int8.cpp and its test.
#pragma once

#include "kernels/linear/linear_int8.h"

namespace tamis {

// The largest magnitude that counts as zero is below this.
constexpr float kSmallestInt8Group = 0x1p-100F;
constexpr float kInt8Max = 127.0F;

void linears_int8_simd(KernelContext& context, const std::span<const LinearArgs>& args);
void linears_int8_reference(KernelContext& context, const std::span<const LinearArgs>& args);

}  // namespace tamis
