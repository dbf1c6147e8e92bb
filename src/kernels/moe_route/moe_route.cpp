#include "kernels/moe_route/moe_route.h"

#include "kernels/moe_route/moe_route_impl.h"

namespace tamis {

void moe_route(KernelContext& context, const MoeRouteArgs& args) {
  if (context.backend() == Backend::kCuda && moe_route_cuda_supports(args)) {
    context.note("moe_route", "cuda");
    return moe_route_cuda(context, args);
  }
  if (args.norm.rows > 0) rms_norm(context, args.norm);
  linear(context, args.router);
  moe_gate(context, args.gate);
  moe_permute(context, args.permute);
}

}  // namespace tamis
