// The implementations of moe_permute_backward.
#pragma once

#include "kernels/moe_permute/moe_permute_backward.h"

namespace tamis {

void moe_combine_backward_cuda(KernelContext& context, const MoeCombineBackwardArgs<float>& args);
void moe_permute_backward_cuda(KernelContext& context, const MoePermuteBackwardArgs<float>& args);

}  // namespace tamis
