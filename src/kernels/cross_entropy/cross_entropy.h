// Negative log-likelihood of given tokens: loss[r] = log sum_v e^logits[r,v] - logits[r, target].
// Sums in double. NaN where a logit is NaN.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct CrossEntropyArgs {
  const float* logits = nullptr;  // [rows, vocabulary]
  const int32_t* targets = nullptr;
  int64_t rows = 0, vocabulary = 0;
  double* loss = nullptr;  // [rows]
};

void cross_entropy(KernelContext& context, const CrossEntropyArgs& args);

}  // namespace tamis
