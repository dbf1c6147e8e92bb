// The products of linear layers and of experts, forward and backward. Internal to train/.
//
// With Objective::fp8 every factor is rounded to e4m3 by blocks first (fp8_round.h), each where its
// product needs it:
//
//   forward          x across rows, W in squares
//   gradient of x    dy across rows, W in squares: the values of the forward pass
//   gradient of W    dy and x down columns, the tokens being the inner index
//
// The products of what was rounded are those of any other factors: on a GPU in bf16, where the
// rounded values are exact, with sums in float32. Gradients go through the rounding as if it were
// none. Embedding, head, norms, the router, the indexer's head weights, attention and what it
// absorbs are not linear layers here.
#pragma once

#include <span>

#include "train/pass.h"

namespace tamis {

// y = x W^T
template <typename T>
void linear_forward(Pass<T>& p, std::span<const Product<T>> list);
template <typename T>
void linear_forward(Pass<T>& p, const Product<T>& one) {
  linear_forward<T>(p, std::span<const Product<T>>(&one, 1));
}

// Those of a list do not overlap.
template <typename T>
void linear_backward(Pass<T>& p, std::span<const ProductBackward<T>> list);
template <typename T>
void linear_backward(Pass<T>& p, const ProductBackward<T>& one) {
  linear_backward<T>(p, std::span<const ProductBackward<T>>(&one, 1));
}

// Those of a list have one w_stride.
template <typename T>
void expert_linear_forward(Pass<T>& p, const ExpertRows& rows,
                           std::span<const ExpertProduct<T>> list);

// y = x W_e^T of every expert forward: dx = or += dy W_e, dw_e += dy^T x.
template <typename T>
struct ExpertProductBackward {
  const T *dy = nullptr, *x = nullptr;  // [all, rows], [all, cols]
  const T* w = nullptr;
  int64_t w_stride = 0, rows = 0, cols = 0;
  T* dx = nullptr;  // [all, cols]
  bool add_dx = false;
  T* dw = nullptr;  // of the first expert, w_stride from one to the next
  const uint16_t *dy_bf16 = nullptr, *x_bf16 = nullptr;
};
template <typename T>
void expert_linear_backward(Pass<T>& p, const ExpertRows& rows, const ExpertProductBackward<T>& e);

}  // namespace tamis
