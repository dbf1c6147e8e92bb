// The implementations of swiglu_backward.
#pragma once

#include "kernels/swiglu/swiglu_backward.h"

namespace tamis {

void swiglu_backward_cuda(KernelContext& context, const SwigluBackwardArgs<float>& args);

}  // namespace tamis
