// topk of short rows (topk_row.cu).
#pragma once

#include "kernels/topk/topk_impl.h"

namespace tamis {

constexpr int64_t kMostOfRow = 8192;

// No row is longer than kMostOfRow; any k of 1 or more.
void topk_cuda_row(KernelContext& context, const TopkArgs& args, const TopkRun& run);

}  // namespace tamis
