// The implementations of indexer_select.
#pragma once

#include "base/function_ref.h"
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
// The same for up to 64 heads of up to 128 values, on the tensor cores: scores that could decide
// what is selected are those, the others approximate (indexer_train_filter.cu). Forced to
// "cuda_filter", the operation "indexer_train_scores" takes them for any number of heads, to "cuda"
// for none. The keys of all tokens come first, once.
bool indexer_train_filters(KernelContext& context, const IndexerSelectTrainArgs& args);
void indexer_train_filter_keys(KernelContext& context, const IndexerSelectTrainArgs& args);
void indexer_train_filter(KernelContext& context, const IndexerSelectTrainArgs& args,
                          const TrainScores& of, float* out, int64_t stride);
// Those of all tokens, as many at a time as fit in scratch memory.
struct TrainScoreRows {
  const float* scores = nullptr;  // [tokens, stride]; null if every row has at most k keys
  int64_t stride = 0, first = 0, tokens = 0, longest = 0;
  const int32_t* position = nullptr;  // [tokens]
};
void for_each_scores(KernelContext& context, const IndexerSelectTrainArgs& args,
                     FunctionRef<void(const TrainScoreRows&)> body);
void indexer_select_train_cuda(KernelContext& context, const IndexerSelectTrainArgs& args);
// select_mask.cu: no list of rows, sequences of at most 4096 tokens.
bool select_mask_supports(const SelectMaskArgs& args);
void select_mask_cuda(KernelContext& context, const SelectMaskArgs& args);
// The words of the tiles from those of the tokens.
void mask_tiles_cuda(KernelContext& context, const MaskSelectionArgs& args);
void mask_selection_cuda(KernelContext& context, const MaskSelectionArgs& args);
void indexer_select_simd(KernelContext& context, const IndexerSelectArgs& args);

}  // namespace tamis
