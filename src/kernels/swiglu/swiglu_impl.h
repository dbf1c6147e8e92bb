// The implementations of swiglu, for swiglu.cpp and its test.
#pragma once

#include "kernels/swiglu/swiglu.h"

namespace tamis {

void swiglu_cuda(KernelContext& context, const SwigluArgs& args);
void swiglus_cuda(KernelContext& context, std::span<const SwigluArgs> args);
void swiglu_simd(KernelContext& context, const SwigluArgs& args);
void swiglu_reference(KernelContext& context, const SwigluArgs& args);

}  // namespace tamis
