// The implementations of grouped_linear.
#pragma once

#include "kernels/grouped_linear/grouped_linear.h"

namespace tamis {

void grouped_linear_cuda(KernelContext& context, const GroupedLinearArgs& args);
// projections() with native set.
void projections_cuda(KernelContext& context, std::span<const LinearArgs> args, bool ue8m0);

}  // namespace tamis
