// The implementations of moe_gate_backward.
#pragma once

#include <span>

#include "kernels/moe_gate/moe_gate_backward.h"

namespace tamis {

void moe_gate_backward_cuda(KernelContext& context, const MoeGateBackwardArgs<float>& args);
void moe_gate_backwards_cuda(KernelContext& context,
                             std::span<const MoeGateBackwardArgs<float>> args);

}  // namespace tamis
