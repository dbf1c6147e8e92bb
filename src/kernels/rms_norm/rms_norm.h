// Root-mean-square norm, with the residual addition that precedes it.
//
//   r = x + delta (delta optional; written back to x)      y = w * r * rsqrt(mean(r^2) + eps)
//
// float32, the mean summed in double. round_bf16: the official bf16 order, i.e. y from the
// unrounded r, rounded once; x becomes r rounded to bf16.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tamis {

struct RmsNormArgs {
  float* x = nullptr;  // [rows, x_stride]; only written when delta is given
  int64_t x_stride = 0;
  const float* delta = nullptr;  // [rows, width] or null
  const float* w = nullptr;      // [width]
  int64_t rows = 0, width = 0;
  float eps = 0;
  float* y = nullptr;  // [rows, y_stride]; may be x when delta is null
  int64_t y_stride = 0;
  bool round_bf16 = false;
  uint16_t* y_bf16 = nullptr;  // [rows, width], or null: y rounded, besides y or (CUDA) without it
};

void rms_norm(KernelContext& context, const RmsNormArgs& args);
// Several that do not depend on each other.
void rms_norms(KernelContext& context, std::span<const RmsNormArgs> args);

}  // namespace tamis
