// The implementations of rope.
#pragma once

#include "kernels/rope/rope.h"

namespace tamis {

void rope_cuda(KernelContext& context, const RopeArgs& args);
void ropes_cuda(KernelContext& context, std::span<const RopeArgs> args);

}  // namespace tamis
