// The implementations of grouped_linear.
#pragma once

#include "kernels/grouped_linear/grouped_linear.h"

namespace tamis {

void grouped_linear_cuda(KernelContext& context, const GroupedLinearArgs& args);

}  // namespace tamis
