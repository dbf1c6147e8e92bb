// The gradient of rms_norm: y = w * x * r, r = rsqrt(mean(x^2) + eps).
//
//   g = w * dy      dx += r * (g - x * r^2 * mean(g * x))      dw += sum over rows of dy * x * r
//
// r is computed again from x. Sums over the row and over rows in double, rows in order, so nothing
// depends on the threads.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

template <typename T>
struct RmsNormBackwardArgs {
  const T* x = nullptr;  // [rows, x_stride]: the input of the forward pass
  int64_t x_stride = 0;
  const T* w = nullptr;   // [width]
  const T* dy = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  T eps = 0;
  T* dx = nullptr;  // [rows, dx_stride], added to
  int64_t dx_stride = 0;
  T* dw = nullptr;         // [width], added to
  bool overwrite = false;  // dx = instead of dx +=
  // On CUDA: dx rounded to bf16, by dx_stride, besides dx; with overwrite dx may be null.
  uint16_t* dx_bf16 = nullptr;
};

template <typename T>
void rms_norm_backward(KernelContext& context, const RmsNormBackwardArgs<T>& args);

}  // namespace tamis
