// The bits of a selection (kernels/selection_mask.h) from its rows, in training.
#pragma once

#include <cstdint>

#include "kernels/context.h"
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

void mask_selection(KernelContext& context, const MaskSelectionArgs& args);

}  // namespace tamis
