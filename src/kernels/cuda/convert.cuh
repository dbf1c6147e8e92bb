// tensor/convert.h for device code, bit for bit: conversions between float and the formats of 16
// bits. fp8.cuh has those of FP8.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace tamis {

__device__ inline float bf16_bits_to_float(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ inline uint16_t float_to_bf16_bits(float x) {
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

__device__ inline float round_bf16(float x) { return bf16_bits_to_float(float_to_bf16_bits(x)); }

__device__ inline float f16_bits_to_float(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

// The smallest power of two that is not below x > 0.
__device__ inline float ceil_power_of_two(float x) {
  const uint32_t u = __float_as_uint(x);
  return __uint_as_float(((u >> 23) + ((u & 0x7FFFFFu) != 0 ? 1u : 0u)) << 23);
}

}  // namespace tamis
