// The bits of a selection (kernels/selection_mask.h) from its rows, in training.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/indexer_select/indexer_select_train.h"
#include "kernels/selection_mask.h"
#include "kernels/token_sequences.h"

namespace tamis {

struct MaskSelectionArgs {
  const int32_t* indices = nullptr;  // [tokens, k]: what indexer_select_train wrote
  int64_t tokens = 0, k = 0;
  TokenSequences sequences = {};
  // SelectionMask's, at the first of the tokens. Written: every word of a token; words of tiles at
  // the tokens that begin a tile.
  uint64_t* bits = nullptr;
  int64_t stride = 0, words = 0;
};

// Both at once: indexer_select_train and the bits of what it selects. Its indices, [tokens, k], are
// memory to work in: on CUDA bits of short sequences come straight from the scores.
struct SelectMaskArgs {
  IndexerSelectTrainArgs select;
  uint64_t* bits = nullptr;  // as above
  int64_t stride = 0, words = 0;
};

void mask_selection(KernelContext& context, const MaskSelectionArgs& args);
void select_mask(KernelContext& context, const SelectMaskArgs& args);

}  // namespace tamis
