// Loss and gradient of cross entropy in one pass over the logits, which the gradient replaces: a
// caller that works through the tokens in blocks never holds [tokens, vocabulary].
//
//   loss[r] = log sum_v e^x[r,v] - x[r, target]      x[r,v] <- scale * (softmax(x[r])[v] - [v =
//   target])
//
// A target of -1 is no target: loss 0, gradient 0. Sums in double.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct CrossEntropyBackwardArgs {
  T* logits = nullptr;               // [rows, vocabulary]: in the logits, out their gradient
  const int32_t* targets = nullptr;  // [rows], in [-1, vocabulary)
  int64_t rows = 0, vocabulary = 0;
  double scale = 1;
  double* loss = nullptr;  // [rows], not scaled
  // [rows, vocabulary], or null: the gradient rounded to bf16. The logits are then left in an
  // undefined state.
  uint16_t* gradient_bf16 = nullptr;
};

template <typename T>
void cross_entropy_backward(KernelContext& context, const CrossEntropyBackwardArgs<T>& args);

}  // namespace tamis
