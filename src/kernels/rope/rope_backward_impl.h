// The implementations of rope_backward.
#pragma once

#include "kernels/rope/rope_backward.h"

namespace tamis {

void rope_turn_cuda(KernelContext& context, const RopeTurnArgs<float>& args);

}  // namespace tamis
