// Element types of tensors in memory and in files.
#pragma once

#include <cstdint>
#include <string_view>

namespace tamis {

enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  // e4m3fn: 1-4-3 bits, bias 7, largest 448, no infinity, 0x7F and 0xFF are NaN
  kF8E8M0,  // UE8M0: an unsigned exponent, value 2^(byte - 127), 0xFF is NaN
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool,
  kI4,  // two per byte, low nibble first, values -8..7; rows start on a byte
};

// The name as safetensors files spell it ("F32", "BF16", "F8_E4M3", "I8", ...).
std::string_view dtype_name(DType dtype);

// The type of that name; false if there is none.
bool dtype_from_name(std::string_view name, DType* dtype);

// Bits of one element (4 for kI4).
int dtype_bits(DType dtype);

// Bytes of `count` elements of one row.
inline int64_t dtype_bytes(DType dtype, int64_t count) {
  return (count * dtype_bits(dtype) + 7) / 8;
}

}  // namespace tamis
