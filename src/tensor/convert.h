// Scalar conversions between float and the narrow formats. These are the definition; vector code
// is tested against them bit by bit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace tamis {

inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

inline float round_to_bf16(float x) { return bf16_to_float(float_to_bf16(x)); }

float f16_to_float(uint16_t bits);
uint16_t float_to_f16(float x);  // nearest even; overflow gives infinity

float e4m3_to_float(uint8_t bits);
// Nearest even after clamping to +-448 (saturating, as DeepSeek's act_quant); NaN gives 0x7F.
uint8_t float_to_e4m3(float x);

// 2^(bits - 127); 0xFF is NaN.
inline float e8m0_to_float(uint8_t bits) {
  return bits == 0xFF ? std::bit_cast<float>(0x7FC00000u) : std::ldexp(1.0f, bits - 127);
}

// The smallest power of two that is not below x > 0, found on the bits ("exponent + 1 if
// the mantissa is not 0").
inline float round_up_to_power_of_two(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t exponent = (u >> 23) + ((u & 0x7FFFFFu) != 0 ? 1u : 0u);
  return std::bit_cast<float>(exponent << 23);
}

}  // namespace tamis
