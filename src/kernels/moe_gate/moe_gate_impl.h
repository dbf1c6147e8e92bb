// The implementations of moe_gate.
#pragma once

#include "kernels/moe_gate/moe_gate.h"

namespace tamis {

void moe_gate_cuda(KernelContext& context, const MoeGateArgs& args);
// False if the experts of a token do not fit in shared memory.
bool moe_gate_cuda_supports(const MoeGateArgs& args);

}  // namespace tamis
