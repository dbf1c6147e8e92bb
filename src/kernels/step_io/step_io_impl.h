// The implementations of step_io.
#pragma once

#include "kernels/step_io/step_io.h"

namespace tamis {

void step_in_cuda(KernelContext& context, const StepInArgs& args);
void step_out_cuda(KernelContext& context, const StepOutArgs& args);
bool step_idle_cuda(KernelContext& context);

}  // namespace tamis
