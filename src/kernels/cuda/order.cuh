// Floats as unsigned integers of the same order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tamis {

// -0 is 0; NaN is 0, below -inf.
__device__ inline uint32_t key_of(float x) {
  if (isnan(x)) return 0;
  const uint32_t u = __float_as_uint(x + 0.0f);
  return (u >> 31) != 0 ? ~u : u | 0x80000000u;
}

}  // namespace tamis
