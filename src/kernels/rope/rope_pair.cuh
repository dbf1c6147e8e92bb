// One pair of rope, for its kernel and those that rotate among other things.
#pragma once

#include <cuda_runtime.h>

#include "kernels/rope/rope.h"

namespace tamis {

// Pair `index` of the heads * dim / 2 of token t.
__device__ inline void rope_pair(const RopeArgs& a, int64_t t, int64_t index) {
  const auto half = static_cast<uint32_t>(a.dim / 2), of_token = static_cast<uint32_t>(index);
  const int64_t h = of_token / half, i = of_token % half;
  float* x = a.x + t * a.token_stride + h * a.head_stride;
  const bool interleaved = a.layout == RopeLayout::kInterleaved;
  float& first = x[interleaved ? 2 * i : i];
  float& second = x[interleaved ? 2 * i + 1 : i + half];
  const float u = first, v = second, cos = a.cos[t * half + i], sin = a.sin[t * half + i];
  first = u * cos - v * sin;
  second = v * cos + u * sin;
}

}  // namespace tamis
