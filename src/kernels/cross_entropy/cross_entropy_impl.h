// The implementations of cross_entropy.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace tamis {

void cross_entropy_cuda(KernelContext& context, const CrossEntropyArgs& args);

}  // namespace tamis
