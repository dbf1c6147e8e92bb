// The implementation of sample_tokens.
#pragma once

#include "kernels/sample/sample.h"

namespace tamis {

void sample_tokens_cuda(KernelContext& context, const SampleTokensArgs& args);

}  // namespace tamis
