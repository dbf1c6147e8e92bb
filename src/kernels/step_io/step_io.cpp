#include "kernels/step_io/step_io.h"

#include "kernels/step_io/step_io_impl.h"

namespace tamis {

void step_in(KernelContext& context, const StepInArgs& args) {
  context.note("step_in", "cuda");
  step_in_cuda(context, args);
}

void step_out(KernelContext& context, const StepOutArgs& args) {
  context.note("step_out", "cuda");
  step_out_cuda(context, args);
}

bool step_idle(KernelContext& context) { return step_idle_cuda(context); }

}  // namespace tamis
