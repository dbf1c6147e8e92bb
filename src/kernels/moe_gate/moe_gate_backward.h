// The gradient of moe_gate with sigmoid scores, and the sequence-wise balance loss (DeepSeek-V3
// report, eq. 17-20), for the tokens of one sequence.
//
//   s = sigmoid(logits), c = the chosen experts
//   weights[i] = f s[c_i] / D, D = sum_j s[c_j] + 1e-20 (1 without norm_topk_prob), f the routed
//   scaling factor. The choice and the bias carry no gradient:
//   ds[c_i] = f / D * (dw_i - sum_j dw_j s[c_j] / D)          (f dw_i without norm_topk_prob)
//   balance = sum_e load_e P_e,  load_e = E / (K tokens) * (how many tokens chose e),
//             P_e = mean over tokens of s'_e,  s' = s / sum_e s
//   ds_e   += balance_scale / tokens * (load_e - sum_j load_j s'_j) / sum_e s
//   dlogits = ds s (1 - s)
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct MoeGateBackwardArgs {
  const T* logits = nullptr;     // [tokens, experts]
  const int32_t* ids = nullptr;  // [tokens, num_chosen], what the forward pass chose
  const T* dweights = nullptr;   // [tokens, num_chosen]
  int64_t tokens = 0, experts = 0, num_chosen = 0;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  double balance_scale = 0;   // of the balance loss's gradient; 0 leaves it out
  T* dlogits = nullptr;       // [tokens, experts], written
  double* balance = nullptr;  // [1] or null: the balance loss, not scaled
};

template <typename T>
void moe_gate_backward(KernelContext& context, const MoeGateBackwardArgs<T>& args);
// Of several sequences.
template <typename T>
void moe_gate_backwards(KernelContext& context, std::span<const MoeGateBackwardArgs<T>> args);

}  // namespace tamis
