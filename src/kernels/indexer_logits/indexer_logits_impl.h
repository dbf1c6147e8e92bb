// The implementations of indexer_logits.
#pragma once

#include "kernels/indexer_logits/indexer_logits.h"

namespace tamis {

// Scores of token t against positions [begin, end), to out[0 .. end-begin).
void indexer_row_reference(const IndexerArgs& args, int64_t t, int64_t begin, int64_t end,
                           float* key, float* out);
void indexer_logits_reference(KernelContext& context, const IndexerLogitsArgs& args);

}  // namespace tamis
