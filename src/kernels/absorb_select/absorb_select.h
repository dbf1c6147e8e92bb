// The two operations on a token's queries that do not need each other: per_head_linear, transposed,
// of attention's, and indexer_select of the indexer's, with their bits.
//
// On a GPU, for one token, the scores are made in the launch of the product.
#pragma once

#include "kernels/indexer_select/indexer_select.h"
#include "kernels/per_head_linear/per_head_linear.h"

namespace tamis {

struct AbsorbSelectArgs {
  PerHeadLinearArgs absorb;
  IndexerSelectArgs select;  // touches nothing that `absorb` and what runs beside it write
};

void absorb_select(KernelContext& context, const AbsorbSelectArgs& args);

}  // namespace tamis
