// The gradients of moe_permute and moe_combine. Rows are those of the forward pass: row_of[t,i].
//
//   combine   y[t] = sum_i weights[t,i] rows[row_of[t,i]]
//             drows[row_of[t,i]] = weights[t,i] dy[t]      dweights[t,i] = dy[t] .
//             rows[row_of[t,i]]
//   permute   rows[row_of[t,i]] = x[t]      dx[t] += sum_i drows[row_of[t,i]], slots in order
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct MoeCombineBackwardArgs {
  const T* rows = nullptr;          // [tokens * num_chosen, width]: the experts' outputs
  const int32_t* row_of = nullptr;  // [tokens, num_chosen]
  const T* weights = nullptr;       // [tokens, num_chosen]
  const T* dy = nullptr;            // [tokens, width]
  int64_t tokens = 0, num_chosen = 0, width = 0;
  T* drows = nullptr;              // [tokens * num_chosen, width], written
  T* dweights = nullptr;           // [tokens, num_chosen], written; sums in double
  uint16_t* drows_bf16 = nullptr;  // drows rounded to bf16, in their place
};

template <typename T>
void moe_combine_backward(KernelContext& context, const MoeCombineBackwardArgs<T>& args);

template <typename T>
struct MoePermuteBackwardArgs {
  const T* drows = nullptr;         // [tokens * num_chosen, width]
  const int32_t* row_of = nullptr;  // [tokens, num_chosen]
  int64_t tokens = 0, num_chosen = 0, width = 0;
  T* dx = nullptr;  // [tokens, width], added to
};

template <typename T>
void moe_permute_backward(KernelContext& context, const MoePermuteBackwardArgs<T>& args);

}  // namespace tamis
