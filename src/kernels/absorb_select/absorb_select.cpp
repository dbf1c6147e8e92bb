#include "kernels/absorb_select/absorb_select.h"

#include "kernels/absorb_select/absorb_select_impl.h"

namespace tamis {

void absorb_select(KernelContext& context, const AbsorbSelectArgs& args) {
  if (context.backend() == Backend::kCuda && absorb_select_cuda_supports(args)) {
    context.note("absorb_select", "cuda");
    return absorb_select_cuda(context, args);
  }
  per_head_linear(context, args.absorb);
  indexer_select(context, args.select);
}

}  // namespace tamis
