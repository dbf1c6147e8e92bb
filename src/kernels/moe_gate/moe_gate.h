// The DeepSeekMoE router without auxiliary loss.
//
//   s = sigmoid(logits), b = s + bias (for the choice only)
//   group score = sum of the group's two largest b; topk_group groups are kept
//   the num_chosen largest b of the kept groups are chosen; weight = s, divided by their sum
//   (+ 1e-20) if norm_topk_prob, times routed_scaling_factor
// Ties go to the lower id. A NaN logit makes its weights NaN, never an id out of range.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct MoeGateArgs {
  const float* logits = nullptr;  // [tokens, experts]
  const float* bias = nullptr;    // [experts] or null
  int64_t tokens = 0, experts = 0;
  int64_t groups = 1, topk_group = 1, num_chosen = 1;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;
  bool softmax = false;      // scores by softmax instead of sigmoid (scoring_func)
  int32_t* ids = nullptr;    // [tokens, num_chosen], ascending
  float* weights = nullptr;  // [tokens, num_chosen], in the order of ids
};

void moe_gate(KernelContext& context, const MoeGateArgs& args);

}  // namespace tamis
