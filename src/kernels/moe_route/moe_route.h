// The way of tokens to their experts: the norm, the router's product, moe_gate of its logits,
// moe_permute of the choice, with the numbers of these four; one launch for few tokens and a small
// router, the norm in it for one or two.
#pragma once

#include "kernels/linear/linear.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_permute/moe_permute.h"
#include "kernels/rms_norm/rms_norm.h"

namespace tamis {

struct MoeRouteArgs {
  RmsNormArgs norm;   // y: router.x and permute.x; of no rows: they are there
  LinearArgs router;  // y: gate.logits
  MoeGateArgs gate;
  MoePermuteArgs permute;  // of gate.ids, for the same tokens and experts
};

void moe_route(KernelContext& context, const MoeRouteArgs& args);

}  // namespace tamis
