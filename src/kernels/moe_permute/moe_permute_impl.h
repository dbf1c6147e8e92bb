// The implementations of moe_combine, for moe_permute.cpp and its test.
#pragma once

#include "kernels/moe_permute/moe_permute.h"

namespace tamis {

void moe_permute_cuda(KernelContext& context, const MoePermuteArgs& args);
// False if the counts of all experts do not fit in shared memory.
bool moe_permute_cuda_supports(const MoePermuteArgs& args);
void moe_combine_cuda(KernelContext& context, const MoeCombineArgs& args);
void moe_combine_simd(KernelContext& context, const MoeCombineArgs& args);
void moe_combine_reference(KernelContext& context, const MoeCombineArgs& args);

}  // namespace tamis
