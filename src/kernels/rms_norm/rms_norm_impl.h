// The implementations of rms_norm, for rms_norm.cpp and its test.
#pragma once

#include "kernels/rms_norm/rms_norm.h"

namespace tamis {

void rms_norm_cuda(KernelContext& context, const RmsNormArgs& args);
void rms_norms_cuda(KernelContext& context, std::span<const RmsNormArgs> args);
void rms_norm_simd(KernelContext& context, const RmsNormArgs& args);
void rms_norm_reference(KernelContext& context, const RmsNormArgs& args);

}  // namespace tamis
