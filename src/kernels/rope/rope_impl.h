// The implementations of rope.
#pragma once

#include "kernels/rope/rope.h"

namespace tamis {

void rope_cuda(KernelContext& context, const RopeArgs& args);

}  // namespace tamis
