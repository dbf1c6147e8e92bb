// Sorts (token, slot) pairs by expert, so that each expert works on consecutive rows, and brings
// the results back. Within an expert the pairs keep their order: tokens ascending.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct MoePermuteArgs {
  const int32_t* ids = nullptr;  // [tokens, num_chosen]
  int64_t tokens = 0, num_chosen = 0, experts = 0;
  const float* x = nullptr;  // [tokens, width]
  int64_t width = 0;
  int32_t* row_of = nullptr;      // out [tokens, num_chosen]: the row of each pair
  int64_t* offsets = nullptr;     // out [experts + 1]: expert e has rows offsets[e] .. offsets[e+1]
  float* rows = nullptr;          // out [tokens * num_chosen, width]; or null: no rows, no x
  uint16_t* rows_bf16 = nullptr;  // out: the rows rounded to bf16, in the place of `rows`
};

void moe_permute(KernelContext& context, const MoePermuteArgs& args);

// y[t] = sum over slots in order of weights[t,i] * rows[row_of[t,i]], then + shared[t] (optional).
// float32 sums in that fixed order.
struct MoeCombineArgs {
  const float* rows = nullptr;  // [.., width]
  const int32_t* row_of = nullptr;
  const float* weights = nullptr;  // [tokens, num_chosen]
  int64_t tokens = 0, num_chosen = 0, width = 0;
  const float* shared = nullptr;  // [tokens, width] or null
  float* y = nullptr;             // [tokens, width]
};

void moe_combine(KernelContext& context, const MoeCombineArgs& args);

}  // namespace tamis
