// Conversions of FP8 (e4m3) in device code, bit for bit those of tensor/convert.h, and elements of
// a Weight, which may be FP8.
//
// There are instructions for them from sm_89 on. So a .cu file that includes this one, itself or
// through others, is compiled by two front ends, for compute_80 and compute_89, the others by one.
// CMake looks for them when it runs (cmake/TamisCuda.cmake).
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/convert.cuh"
#include "kernels/weight.h"

#ifndef TAMIS_CUDA_FP8
#error "this file did not include kernels/cuda/fp8.cuh when CMake ran: run cmake again"
#endif

namespace tamis {

__device__ inline float e4m3_bits_to_float(uint8_t bits) {
  return f16_bits_to_float(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3).x);
}

// Saturating at +-448, nearest even, NaN gives 0x7F.
__device__ inline uint8_t float_to_e4m3_bits(float x) {
  if (isnan(x)) return 0x7F;
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
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

namespace tamis::ptx {

// Two e4m3 codes (the low byte first) as f16, exactly. An instruction from sm_89 on; before, the
// bits are moved into place (f16 has the bias 15, e4m3 7: times 2^8) and NaN is set by hand.
__device__ inline uint32_t e4m3x2_to_f16x2(uint16_t codes) {
#if __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(halves) : "h"(codes));
  return halves;
#else
  const uint32_t spread = (codes & 0xFFu) | (static_cast<uint32_t>(codes & 0xFF00u) << 8);
  const uint32_t sign = (spread & 0x00800080u) << 8;
  const uint32_t magnitude = (spread & 0x007F007Fu) << 7;
  uint32_t scaled;
  asm("mul.rn.f16x2 %0, %1, %2;\n" : "=r"(scaled) : "r"(magnitude), "r"(0x5C005C00u));
  if ((codes & 0x7Fu) == 0x7Fu) scaled |= 0x00007FFFu;
  if ((codes & 0x7F00u) == 0x7F00u) scaled |= 0x7FFF0000u;
  return scaled | sign;
#endif
}

// Four codes as two such pairs. In one piece, so that the halves of a register are named where
// they are used and none is shifted.
__device__ inline void e4m3x4_to_f16x2(uint32_t codes, uint32_t* low, uint32_t* high) {
#if __CUDA_ARCH__ >= 890
  asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.rn.f16x2.e4m3x2 %0, a;\n"
      "cvt.rn.f16x2.e4m3x2 %1, b;\n}\n"
      : "=r"(*low), "=r"(*high)
      : "r"(codes));
#else
  *low = e4m3x2_to_f16x2(static_cast<uint16_t>(codes));
  *high = e4m3x2_to_f16x2(static_cast<uint16_t>(codes >> 16));
#endif
}

}  // namespace tamis::ptx
