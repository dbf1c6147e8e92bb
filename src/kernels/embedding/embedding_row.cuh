// One token of embedding, for its kernel and that of token_ops.
#pragma once

#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/embedding/embedding.h"

namespace tamis {

// By a block of kRowThreads.
__device__ inline void embed_token(const EmbeddingArgs& a, int64_t t) {
  const int64_t row = a.ids[t] - a.first_id;
  const bool here = row >= 0 && row < a.w.rows;
  float* y = a.y + t * a.w.cols;
  for (int64_t c = threadIdx.x; c < a.w.cols; c += kRowThreads) {
    y[c] = here ? weight_value(a.w, row, c) : -0.0F;  // x + -0 is x for every x
  }
}

}  // namespace tamis
