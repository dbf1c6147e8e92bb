// The implementations of indexer_select.
#pragma once

#include "kernels/indexer_select/indexer_select.h"
#include "kernels/indexer_select/indexer_select_train.h"
#include "kernels/indexer_select/mask_selection.h"

namespace tamis {

void indexer_select_reference(KernelContext& context, const IndexerSelectArgs& args);
void indexer_select_cuda(KernelContext& context, const IndexerSelectArgs& args);
// On CUDA: the scores of `tokens` tokens from `first` on, none of a sequence of more than
// `longest`, to rows of `stride` floats; of those that see at most k keys some or none.
struct TrainScores {
  int64_t first = 0, tokens = 0, longest = 0;
};
void indexer_train_scores(KernelContext& context, const IndexerSelectTrainArgs& args,
                          const TrainScores& of, float* out, int64_t stride);
void indexer_select_train_cuda(KernelContext& context, const IndexerSelectTrainArgs& args);
void mask_selection_cuda(KernelContext& context, const MaskSelectionArgs& args);
void indexer_select_simd(KernelContext& context, const IndexerSelectArgs& args);

}  // namespace tamis
