// Sparse attention over gathered rows, in the absorbed form: every head's queries and outputs in
// the latent's dimensions. Those are many more values than all else that a token has (heads *
// kv_lora each), so they exist for a block of tokens at a time; outputs are kept for the backward
// pass unless Objective::recompute. Internal to train/.
#pragma once

#include "train/pass.h"

namespace tamis {

// Tokens of a block, of which one array [heads, kv_lora] takes about 1 GiB.
int64_t latent_block(const ModelConfig& config);

// The layer's o [tokens, heads, v_head] from its q, c_kv, k_pe and indices. With train_indexer also
// work.target [tokens, topk]: the mean over this rank's heads of what they attend to.
template <typename T>
void attend_gathered(Pass<T>& p, int64_t l);

// From work.d_o: work.dq, dc_kv and dk_pe, and the gradient of W_kvb. The sums of the last run over
// the tokens of a block, block after block; all else has the same bits for blocks of any size.
template <typename T>
void attend_gathered_backward(Pass<T>& p, int64_t l);

}  // namespace tamis
