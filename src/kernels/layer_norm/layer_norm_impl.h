// The implementations of layer_norm.
#pragma once

#include "kernels/layer_norm/layer_norm.h"

namespace tamis {

void layer_norm_cuda(KernelContext& context, const LayerNormArgs& args);

}  // namespace tamis
