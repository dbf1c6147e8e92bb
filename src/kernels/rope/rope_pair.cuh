// One pair of rope, for its kernel and those that rotate among other things.
#pragma once

#include <cuda_runtime.h>

#include "kernels/rope/rope.h"

namespace tamis {

struct RopePair {
  float first, second;
};

// The pair turned by an angle.
__device__ inline RopePair rotated(RopePair p, float cos, float sin) {
  return {p.first * cos - p.second * sin, p.second * cos + p.first * sin};
}

// Where the values of pair i of a head lie, of `half` pairs.
__device__ inline int64_t first_of_pair(RopeLayout layout, int64_t i) {
  return layout == RopeLayout::kInterleaved ? 2 * i : i;
}
__device__ inline int64_t second_of_pair(RopeLayout layout, int64_t i, int64_t half) {
  return layout == RopeLayout::kInterleaved ? 2 * i + 1 : i + half;
}

// Pair `index` of the heads * dim / 2 of token t.
__device__ inline void rope_pair(const RopeArgs& a, int64_t t, int64_t index) {
  const auto half = static_cast<uint32_t>(a.dim / 2), of_token = static_cast<uint32_t>(index);
  const int64_t h = of_token / half, i = of_token % half;
  float* x = a.x + t * a.token_stride + h * a.head_stride;
  float& first = x[first_of_pair(a.layout, i)];
  float& second = x[second_of_pair(a.layout, i, half)];
  const RopePair p = rotated({first, second}, a.cos[t * half + i], a.sin[t * half + i]);
  first = p.first;
  second = p.second;
}

}  // namespace tamis
