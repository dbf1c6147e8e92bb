// The implementations of hadamard.
#pragma once

#include "kernels/hadamard/hadamard.h"

namespace tamis {

void hadamard_cuda(KernelContext& context, const HadamardArgs& args);
// False if a row does not fit in shared memory.
bool hadamard_cuda_supports(const HadamardArgs& args);

}  // namespace tamis
