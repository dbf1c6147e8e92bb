// Row by row work of the training operations of attention and of the indexer on CUDA, on buffers of
// scores [groups][rows][stride]; and the scatter of gathered rows. Sums run in an order that
// depends on a row's length alone; nothing is added by atomics.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/token_sequences.h"

namespace tamis {

// Which entries of a row count. Causal: row r holds keys 0 .. offset + r, and is set to 0 as far
// past them as the products read that leave out what is not seen. Else row r of `indices` [rows,
// stride] has its positions first and then -1, where it is set to 0.
struct RowSet {
  int64_t rows = 0, stride = 0;
  int64_t offset = 0;
  const int32_t* indices = nullptr;
};

// x [groups][rows][stride] <- softmax(scale x). A row without entries becomes 0. log_sum [rows,
// groups], if not null, gets log2 of the sum of the row's exponentials.
void softmax_rows(KernelContext& context, const RowSet& set, int64_t groups, float scale, float* x,
                  float* log_sum = nullptr);
// dp <- scale p (dp - sum p dp)
void softmax_backward_rows(KernelContext& context, const RowSet& set, int64_t groups, float scale,
                           const float* p, float* dp);
// mean [rows][stride] <- sum over groups in order / groups. mean may be p.
void mean_rows(KernelContext& context, const RowSet& set, int64_t groups, const float* p,
               float* mean);

// to [groups][rows][positions] <- x [groups][rows][stride] where the entries' indices say, 0
// elsewhere.
void spread_rows(KernelContext& context, const RowSet& set, int64_t groups, const float* x,
                 int64_t positions, float* to);

// to [count] += sum over groups in order of x [groups][count].
void add_groups(KernelContext& context, const float* x, int64_t groups, int64_t count, float* to);

// The indexer of the rows: a [heads][rows][stride] holds q_j . k[s], w and dw [rows, heads], p and
// the scratch `score` [rows][stride], kl [rows]. As indexer_kl.h has it; a becomes the gradient of
// the products.
struct IndexRows {
  float* a = nullptr;
  const float* w = nullptr;
  int64_t heads = 0;
  const float* p = nullptr;
  float* score = nullptr;
  double scale = 1;
  double* kl = nullptr;
  float* dw = nullptr;
};
void index_kl_rows(KernelContext& context, const RowSet& set, const IndexRows& x);

// to[s] += sum over the pairs (t, slot) with indices[t, slot] = s, t ascending, of rows[t, slot].
// indices [tokens, k] ascending and then -1, all below `positions`; rows [tokens, k, width], of
// which columns [0, split) go to `to` [positions, split] and the others to `rest` [positions, width
// - split]. The tokens are `first` and those after it of `sequences`; the rows that a token has are
// of its own sequence. Uses slot 7 of the device's scratch memory.
struct ScatterRows {
  const int32_t* indices = nullptr;
  int64_t tokens = 0, k = 0, positions = 0;
  const float* rows = nullptr;
  int64_t width = 0, split = 0;
  float *to = nullptr, *rest = nullptr;
  TokenSequences sequences;
  int64_t first = 0;
};
// Forced to "cuda_atomic", the operation "scatter_rows" adds by atomics, in no order. Forced to
// "cuda", "scatter_slots" searches the rows of indices for a position, as where a list of it would
// be large.
void scatter_rows(KernelContext& context, const ScatterRows& s);
bool adds_atomically(const KernelContext& context);

}  // namespace tamis
