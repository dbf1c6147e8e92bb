// The implementation of moe_route on a device.
#pragma once

#include "kernels/moe_route/moe_route.h"

namespace tamis {

void moe_route_cuda(KernelContext& context, const MoeRouteArgs& args);
// True for few tokens, whose pairs are sorted by comparing each with all, and a router that one
// block multiplies in the time of a launch.
bool moe_route_cuda_supports(const MoeRouteArgs& args);

}  // namespace tamis
