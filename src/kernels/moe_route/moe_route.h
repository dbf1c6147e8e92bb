// The way of tokens to their experts: the router's product, moe_gate of its logits, moe_permute of
// the choice, with the numbers of these three; one launch for few tokens and a small router.
#pragma once

#include "kernels/linear/linear.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_permute/moe_permute.h"

namespace tamis {

struct MoeRouteArgs {
  LinearArgs router;  // y: gate.logits
  MoeGateArgs gate;
  MoePermuteArgs permute;  // of gate.ids, for the same tokens and experts
};

void moe_route(KernelContext& context, const MoeRouteArgs& args);

}  // namespace tamis
