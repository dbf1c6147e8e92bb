// Layer norm of the indexer's key: y = (x - mean) / sqrt(var + eps) * w + b, biased variance.
// float32, sums in double.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct LayerNormArgs {
  const float* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  const float* w = nullptr;  // [width]
  const float* b = nullptr;  // [width]
  int64_t rows = 0, width = 0;
  float eps = 0;
  float* y = nullptr;  // [rows, y_stride]; may be x
  int64_t y_stride = 0;
};

void layer_norm(KernelContext& context, const LayerNormArgs& args);

}  // namespace tamis
