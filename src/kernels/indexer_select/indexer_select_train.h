// indexer_select in training, where keys are plain float32 rows: the same scores and the same total
// order as the operation that serves a model, which it runs. One sequence; on CUDA also several.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/token_sequences.h"

namespace tamis {

struct IndexerSelectTrainArgs {
  const float* q = nullptr;     // [tokens, heads, dim]
  const float* w = nullptr;     // [tokens, heads], every scale folded in
  const float* keys = nullptr;  // [tokens, dim]
  int64_t tokens = 0, heads = 0, dim = 0, k = 0;
  int32_t* indices = nullptr;     // [tokens, k]: rows of keys, ascending, padded with -1
  TokenSequences sequences = {};  // a token sees the keys of its own sequence up to itself
};

void indexer_select_train(KernelContext& context, const IndexerSelectTrainArgs& args);

}  // namespace tamis
