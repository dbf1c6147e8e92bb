// The implementation of absorb_select on a device, in two launches.
#pragma once

#include "kernels/absorb_select/absorb_select.h"

namespace tamis {

// One token that sees more than it selects, weights of BF16, scores by indexer_exact_few.
bool absorb_select_cuda_supports(const AbsorbSelectArgs& args);
void absorb_select_cuda(KernelContext& context, const AbsorbSelectArgs& args);

}  // namespace tamis
