// The gradient of embedding: dW[ids[t]] += dy[t], tokens in order.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct EmbeddingBackwardArgs {
  const int32_t* ids = nullptr;  // [tokens], each a row of dw
  const T* dy = nullptr;         // [tokens, width]
  int64_t tokens = 0, width = 0;
  T* dw = nullptr;         // [vocabulary, width], added to
  int64_t vocabulary = 0;  // if known: short ids are sorted faster
};

template <typename T>
void embedding_backward(KernelContext& context, const EmbeddingBackwardArgs<T>& args);

}  // namespace tamis
