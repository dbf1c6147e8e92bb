// The implementations of cross_entropy_backward.
#pragma once

#include "kernels/cross_entropy/cross_entropy_backward.h"

namespace tamis {

void cross_entropy_backward_cuda(KernelContext& context,
                                 const CrossEntropyBackwardArgs<float>& args);

}  // namespace tamis
