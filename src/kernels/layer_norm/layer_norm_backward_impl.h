// The implementations of layer_norm_backward.
#pragma once

#include "kernels/layer_norm/layer_norm_backward.h"

namespace tamis {

void layer_norm_backward_cuda(KernelContext& context, const LayerNormBackwardArgs<float>& args);

}  // namespace tamis
