// The gradient of swiglu: y = g s u, s = 1 / (1 + e^-g).
//
//   dgate = dy * u * s * (1 + g * (1 - s))      dup = dy * g * s
//
// Element by element, in T.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct SwigluBackwardArgs {
  const T* gate = nullptr;  // [rows, width]: the inputs of the forward pass
  const T* up = nullptr;
  const T* dy = nullptr;
  int64_t rows = 0, width = 0;
  T* dgate = nullptr;  // [rows, width], written; either may be dy
  T* dup = nullptr;
};

template <typename T>
void swiglu_backward(KernelContext& context, const SwigluBackwardArgs<T>& args);

}  // namespace tamis
