// A token drawn from a row of logits: bias and penalties, temperature, top-k, min-p, top-p, a draw.
//
// A token's weight is an integer, 2^44 exp((logit - best) / temperature) rounded down, computed in
// double by multiplications and additions alone (sample_weight.h). Sums of integers are exact in
// any order, so that a device and the host draw the same token from the same logits.
//
//   order   logits falling, ids rising; top-k keeps the first top_k (0: all) of it
//   min-p   drops tokens of less than min_p times the best one's weight
//   top-p   keeps the fewest of the order whose weights reach top_p of all that is left
//   draw    the first token whose weight and those before it exceed random * kept / 2^64: in the
//           order with top-k or top-p, in that of ids without
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/context.h"

namespace tamis {

// What changes a token's logit before anything else.
struct SampleEdit {
  int32_t id = 0;
  float bias = 0;      // added first
  uint32_t seen = 0;   // 1: the repetition penalty divides or multiplies
  uint32_t count = 0;  // of it in the answer: presence and frequency penalties are subtracted
};

struct SampleRow {
  float temperature = 0;  // 0: the largest logit, the lowest id of several
  float top_p = 1, min_p = 0;
  float repetition = 1, presence = 0, frequency = 0;
  int64_t top_k = 0;
  uint64_t random = 0;                // uniform
  int64_t first_edit = 0, edits = 0;  // in the list of edits; ids of a row differ

  // Whether the row's token is not simply that of the largest logit.
  constexpr bool chooses() const { return temperature > 0 || edits > 0; }
};

struct SampleCandidate {
  float logit;
  int32_t id;
};

// The host's draw among candidates in the order of ids, which it reorders: one or more of them, at
// most 2^20, their logits edited. row.edits is not used.
int32_t draw_token(std::vector<SampleCandidate>& all, const SampleRow& row);

// A device's: every row of logits that chooses() is edited in place and its token written; the
// other rows are left alone. Finite logits; vocab at most 2^20.
struct SampleTokensArgs {
  float* logits = nullptr;            // [count, vocab]
  int64_t count = 0, vocab = 0;       // rows
  const SampleRow* rows = nullptr;    // [count]
  const SampleEdit* edits = nullptr;  // of all rows
  int32_t* host_tokens = nullptr;     // out, pinned [count]
};
void sample_tokens(KernelContext& context, const SampleTokensArgs& args);

}  // namespace tamis
