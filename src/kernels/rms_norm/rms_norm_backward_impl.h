// The implementations of rms_norm_backward.
#pragma once

#include "kernels/rms_norm/rms_norm_backward.h"

namespace tamis {

void rms_norm_backward_cuda(KernelContext& context, const RmsNormBackwardArgs<float>& args);

}  // namespace tamis
