// The lightning indexer's scores: equation (1) of the DeepSeek-V3.2 paper.
//
//   I[t,s] = sum_j w[t,j] * ReLU(q[t,j] . k[s])        s <= position of t, float32
//
// q [t, heads, dim] and w [t, heads] come with every scale folded in (w carries heads^-1/2 dim^-1/2
// and, in the FP8 path, the query's own scale); k [s] is the cached key, decoded and scaled by its
// own k_scale. The sum over j runs in order; a score's bits depend on its own t and s alone.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/kv_layout.h"

namespace tamis {

struct IndexerArgs {
  const float* q = nullptr;  // [tokens, heads, dim]
  const float* w = nullptr;  // [tokens, heads]
  int64_t heads = 0;
  KvLayer kv;  // layout.index_dim = dim
  TokenMap tokens;
  // Every q is a value of e4m3 (the FP8 indexer with one block of 128): tensor cores lose nothing
  // then. Only the sum over `dim` gets another order.
  bool q_is_e4m3 = false;
};

struct IndexerLogitsArgs {
  IndexerArgs in;
  float* logits = nullptr;    // [tokens, logits_stride]; row t is written up to its position,
  int64_t logits_stride = 0;  // the rest of the row becomes -inf
};

void indexer_logits(KernelContext& context, const IndexerLogitsArgs& args);

}  // namespace tamis
