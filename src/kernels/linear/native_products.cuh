// The products that one launch of linear_native.cuh computes; products.cuh with x prepared.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/linear/linear.h"

namespace tamis {

// Up to so many rows of x (of the largest product) few_kernel runs; above, tile_kernel, and
// prepare_rows puts columns in its order.
constexpr int64_t kMostFewRows = 16;

struct NativeProduct {
  const uint16_t* x;      // [m, x_stride] bf16 or f16, zeros from column cols on, 16-byte aligned
  const float* x_scales;  // [m, x_stride / 128], FP8 only
  int64_t x_stride;       // cols rounded up to 128
  int64_t m;
  Weight w;
  float* y;  // [m, w.rows]
  int64_t y_stride;
};

struct NativeProducts {
  static constexpr int kMax = 12;

  NativeProduct list[kMax];  // groups: list[0] is the pattern
  int count = 0;
  bool round_bf16 = false;  // y

  // Groups: product g is weights[g] on the rows [offsets[g], offsets[g+1]) of list[0].x and y.
  const Weight* weights = nullptr;
  const int64_t* offsets = nullptr;

  __device__ NativeProduct product(int i) const {
    if (offsets == nullptr) return list[i];
    NativeProduct p = list[0];
    const int64_t first = offsets[i];
    p.m = offsets[i + 1] - first;
    p.x += first * p.x_stride;
    p.x_scales += first * (p.x_stride / kFp8Block);
    p.y += first * p.y_stride;
    p.w = weights[i];
    return p;
  }
};

}  // namespace tamis
