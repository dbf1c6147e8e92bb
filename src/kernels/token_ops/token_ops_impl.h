// The implementation of token_ops on a device.
#pragma once

#include "kernels/token_ops/token_ops.h"

namespace tamis {

void token_ops_cuda(KernelContext& context, int64_t tokens, std::span<const TokenStep> steps);

}  // namespace tamis
