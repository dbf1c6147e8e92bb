// Scores and selection in one: topk(indexer_logits(...)), without keeping the scores.
//
// A token that sees no more than k positions takes them all; its scores are not computed.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/indexer_logits/indexer_logits.h"
#include "kernels/rope/rope.h"

namespace tamis {

struct IndexerSelectArgs {
  IndexerArgs in;
  int64_t k = 0;
  int32_t* indices = nullptr;  // [tokens, k]: ascending, padded with -1
  uint8_t* has_nan = nullptr;  // [tokens]: 1 where a score was NaN
  // What in.q lacks yet, with x = in.q; dim 0: nothing. Whether in.q has it afterwards is not said.
  RopeArgs query_rope = {};
};

void indexer_select(KernelContext& context, const IndexerSelectArgs& args);

}  // namespace tamis
