// The gradient of layer_norm: y = z * w + b, z = (x - mean) * r, r = 1 / sqrt(var + eps).
//
//   g = w * dy      dx = r * (g - mean(g) - z * mean(g * z))      dw += dy * z      db += dy
//
// mean and r are computed again from x. Sums in double, rows in order.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct LayerNormBackwardArgs {
  const T* x = nullptr;   // [rows, width]: the input of the forward pass
  const T* w = nullptr;   // [width]
  const T* dy = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  T eps = 0;
  T* dx = nullptr;  // [rows, width], written; may be dy
  T* dw = nullptr;  // [width], added to
  T* db = nullptr;  // [width], added to
};

template <typename T>
void layer_norm_backward(KernelContext& context, const LayerNormBackwardArgs<T>& args);

}  // namespace tamis
