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
  // The same rounded to bf16, and dgate and dup are not written; null: those.
  uint16_t *dgate_bf16 = nullptr, *dup_bf16 = nullptr;
  int64_t bf16_stride = 0;  // from row to row of those; 0: width
};

template <typename T>
void swiglu_backward(KernelContext& context, const SwigluBackwardArgs<T>& args);

}  // namespace tamis
