#include "kernels/weight.h"

#include <cstring>

#include "base/error.h"
#include "kernels/integer_weight.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

template <typename T>
T load(const std::byte* p, int64_t i) {
  T value;
  std::memcpy(&value, p + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float scale_at(const Weight& w, int64_t i) {
  return w.scale_dtype == DType::kF32 ? load<float>(w.scales, i)
                                      : bf16_to_float(load<uint16_t>(w.scales, i));
}

int nibble(const std::byte* row, int64_t c) {
  const int byte = static_cast<int>(load<uint8_t>(row, c / 2));
  const int q = (c % 2 == 0) ? byte & 15 : byte >> 4;
  return q < 8 ? q : q - 16;
}

}  // namespace

int64_t Weight::bytes() const {
  int64_t n = rows * dtype_bytes(dtype, cols);
  if (dtype == DType::kF8E4M3) {
    n += (rows + kFp8Block - 1) / kFp8Block * ((cols + kFp8Block - 1) / kFp8Block) * 4;
  } else if (dtype == DType::kI8 || dtype == DType::kI4) {
    n += rows * ((cols + kIntGroup - 1) / kIntGroup) * 2;
  }
  return n;
}

Weight Weight::row_slice(int64_t begin, int64_t count) const {
  Weight s = *this;
  s.data += begin * row_bytes;
  s.rows = count;
  s.row_offset += begin;
  return s;
}

Weight Weight::col_slice(int64_t begin, int64_t count) const {
  Weight s = *this;
  s.data += begin * dtype_bits(dtype) / 8;
  s.cols = count;
  s.col_offset += begin;
  return s;
}

void integer_row(const Weight& w, int64_t row, int64_t begin, int64_t count, int8_t* out) {
  const std::byte* p = w.data + row * w.row_bytes;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = w.dtype == DType::kI8 ? load<int8_t>(p, begin + i)
                                   : static_cast<int8_t>(nibble(p, begin + i));
  }
}

float group_scale(const Weight& w, int64_t row, int64_t col) {
  return scale_at(w, (row + w.row_offset) * w.scale_stride + (col + w.col_offset) / kIntGroup);
}

void dequantize_row(const Weight& w, int64_t row, int64_t begin, int64_t count, float* out) {
  const std::byte* p = w.data + row * w.row_bytes;
  const int64_t r = row + w.row_offset;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = begin + i;
    const int64_t gc = c + w.col_offset;
    switch (w.dtype) {
      case DType::kF32:
        out[i] = load<float>(p, c);
        break;
      case DType::kF16:
        out[i] = f16_to_float(load<uint16_t>(p, c));
        break;
      case DType::kBF16:
        out[i] = bf16_to_float(load<uint16_t>(p, c));
        break;
      case DType::kF8E4M3:
        out[i] = e4m3_to_float(load<uint8_t>(p, c)) *
                 scale_at(w, r / kFp8Block * w.scale_stride + gc / kFp8Block);
        break;
      case DType::kI8:
        out[i] = static_cast<float>(load<int8_t>(p, c)) * group_scale(w, row, c);
        break;
      case DType::kI4:
        out[i] = static_cast<float>(nibble(p, c)) * group_scale(w, row, c);
        break;
      default:
        throw UsageError("[linear] weight: dtype " + std::string(dtype_name(w.dtype)));
    }
  }
}

}  // namespace tamis
