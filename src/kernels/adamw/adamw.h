// One step of AdamW with decoupled weight decay (Loshchilov and Hutter), step counted from 1:
//
//   g' = g * gradient_scale      w -= lr * decay * w
//   m = beta1 m + (1 - beta1) g'      v = beta2 v + (1 - beta2) g'^2
//   w -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//
// Element by element in float32. And the sum of squares of a gradient, for its norm: blocks of 4096
// in double, added in order, so its bits do not depend on the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/context.h"

namespace tamis {

struct AdamwArgs {
  float* w = nullptr;  // [n]; w, m and v are updated
  const float* g = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  int64_t n = 0;
  int64_t step = 1;
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0;
  double gradient_scale = 1;
};

void adamw(KernelContext& context, const AdamwArgs& args);

// The sum of squares of x by blocks of kSquaresBlock values, and of all of them: blocks in order.
inline constexpr int64_t kSquaresBlock = 4096;
std::vector<double> squares_by_block(KernelContext& context, const float* x, int64_t n);
double sum_of_squares(KernelContext& context, const float* x, int64_t n);

}  // namespace tamis
