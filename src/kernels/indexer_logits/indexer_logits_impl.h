// The implementations of indexer_logits, and the pieces that indexer_select shares with it.
#pragma once

#include "kernels/indexer_logits/indexer_logits.h"
#include "kernels/rope/rope.h"

namespace tamis {

// Scores of token t against positions [begin, end), to out[0 .. end-begin).
void indexer_row_reference(const IndexerArgs& args, int64_t t, int64_t begin, int64_t end,
                           float* key, float* out);
void indexer_logits_reference(KernelContext& context, const IndexerLogitsArgs& args);

// Scores of tokens [t0, t1), all of one sequence, against positions [begin, end): that of (t, s) to
// out[(t - t0) * stride + s - begin], where s <= position of t. Uses the thread's scratch slots 0
// to 2. One (t, s) has the same bits in every call.
struct IndexerBlock {
  int64_t t0 = 0, t1 = 0, begin = 0, end = 0;
};
void indexer_block_simd(KernelContext& context, int thread, const IndexerArgs& args,
                        const IndexerBlock& block, float* out, int64_t stride);

// Cuts the tokens into runs of one sequence that share their key tiles, about 64 (token, head) rows
// each: starts[i] .. starts[i+1] is run i; room for num_tokens + 1. Returns their number.
int64_t indexer_cut_tokens(const IndexerArgs& args, int32_t* starts);

void indexer_logits_cuda(KernelContext& context, const IndexerLogitsArgs& args);

// What indexer_select asks of the scores on CUDA. Token t's go to out + t * stride.
struct IndexerScores {
  float* out = nullptr;
  int64_t stride = 0;
  int64_t columns = 0;       // positions 0 .. columns-1, an upper bound
  int64_t skip_visible = 0;  // tokens that see no more positions than this get none
  bool fill = false;         // -inf from the token's last position to `columns`
  RopeArgs rope = {};        // of the queries, where indexer_scores_rotate() says so; dim 0: none
};
// Whether indexer_scores_cuda rotates the queries where it reads them.
bool indexer_scores_rotate(const IndexerArgs& args, const RopeArgs& rope);
void indexer_scores_cuda(KernelContext& context, const IndexerArgs& args, const IndexerScores& to);
// The two ways: any shape in float32; heads and dim of the tensor cores.
void indexer_scores_exact(KernelContext& context, const IndexerArgs& args, const IndexerScores& to);
bool indexer_scores_mma_supports(const IndexerArgs& args);
void indexer_scores_mma(KernelContext& context, const IndexerArgs& args, const IndexerScores& to);

void indexer_logits_simd(KernelContext& context, const IndexerLogitsArgs& args);

}  // namespace tamis
