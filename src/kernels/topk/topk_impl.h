// The implementations of topk.
#pragma once

#include "kernels/topk/topk.h"

namespace tamis {

bool topk_row_reference(const float* scores, int64_t length, int64_t k, int32_t* indices);
void topk_reference(KernelContext& context, const TopkArgs& args);
void topk_cuda(KernelContext& context, const TopkArgs& args);
// As indexer_select needs it: a row has lengths[row] + extra candidates; with `unscored`, rows of
// at most k candidates hold no scores: all are taken, none is read.
struct TopkRun {
  int64_t extra = 0;
  bool unscored = false;
};
void topk_cuda_run(KernelContext& context, const TopkArgs& args, const TopkRun& run);
// The same with several blocks a row, for few long rows; k up to 2048.
void topk_cuda_split(KernelContext& context, const TopkArgs& args, const TopkRun& run);
void topk_simd(KernelContext& context, const TopkArgs& args);

}  // namespace tamis
