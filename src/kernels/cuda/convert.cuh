// tensor/convert.h for device code, bit for bit: conversions between float and the narrow formats,
// and elements of a Weight.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/weight.h"

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

__device__ inline float e4m3_bits_to_float(uint8_t bits) {
  return f16_bits_to_float(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3).x);
}

// Saturating at +-448, nearest even, NaN gives 0x7F.
__device__ inline uint8_t float_to_e4m3_bits(float x) {
  if (isnan(x)) return 0x7F;
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

// The smallest power of two that is not below x > 0.
__device__ inline float ceil_power_of_two(float x) {
  const uint32_t u = __float_as_uint(x);
  return __uint_as_float(((u >> 23) + ((u & 0x7FFFFFu) != 0 ? 1u : 0u)) << 23);
}

// W[row, col] dequantised, as dequantize_row of kernels/weight.h. One element at a time: for
// correctness and for odd ends; fast kernels load 16 bytes at once.
__device__ inline float weight_value(const Weight& w, int64_t row, int64_t col) {
  const std::byte* p = w.data + row * w.row_bytes;
  const int64_t r = row + w.row_offset, c = col + w.col_offset;
  switch (w.dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(p)[col];
    case DType::kBF16:
      return bf16_bits_to_float(reinterpret_cast<const uint16_t*>(p)[col]);
    case DType::kF16:
      return f16_bits_to_float(reinterpret_cast<const uint16_t*>(p)[col]);
    case DType::kF8E4M3: {
      const float s =
          reinterpret_cast<const float*>(w.scales)[r / kFp8Block * w.scale_stride + c / kFp8Block];
      return e4m3_bits_to_float(reinterpret_cast<const uint8_t*>(p)[col]) * s;
    }
    case DType::kI8:
    case DType::kI4: {
      const float s = bf16_bits_to_float(
          reinterpret_cast<const uint16_t*>(w.scales)[r * w.scale_stride + c / kIntGroup]);
      if (w.dtype == DType::kI8) {
        return static_cast<float>(reinterpret_cast<const int8_t*>(p)[col]) * s;
      }
      const uint8_t pair = reinterpret_cast<const uint8_t*>(p)[col / 2];
      const int nibble = col % 2 == 0 ? pair & 15 : pair >> 4;
      return static_cast<float>(nibble - (nibble >= 8 ? 16 : 0)) * s;
    }
    default:
      return __int_as_float(0x7FC00000);
  }
}

}  // namespace tamis
