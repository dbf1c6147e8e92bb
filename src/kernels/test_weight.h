// Random weights in every format for the kernel tests, with their storage. Test code only.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/weight.h"
#include "tensor/convert.h"

namespace tamis {

struct TestWeight {
  std::vector<std::byte> data;
  std::vector<std::byte> scales;
  Weight w;

  std::vector<float> row(int64_t r) const {
    std::vector<float> out(static_cast<size_t>(w.cols));
    dequantize_row(w, r, 0, w.cols, out.data());
    return out;
  }
};

inline std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = normal(generator);
  return values;
}

// Integer and FP8 formats get random codes (no NaN code) and random positive scales. `shift` moves
// the data off its alignment by that many bytes; rows lie `gap` bytes apart.
inline TestWeight test_weight(DType dtype, int64_t rows, int64_t cols, uint32_t seed,
                              int64_t shift = 0, int64_t gap = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  TestWeight t;
  Weight& w = t.w;
  w.dtype = dtype;
  w.rows = rows;
  w.cols = cols;
  w.row_bytes = dtype_bytes(dtype, cols + cols % 2) + gap;
  t.data.resize(static_cast<size_t>(rows * w.row_bytes + shift + 1));
  w.data = t.data.data() + shift;
  for (int64_t r = 0; r < rows; ++r) {
    std::byte* row = t.data.data() + shift + r * w.row_bytes;
    for (int64_t c = 0; c < cols; ++c) {
      const float value = normal(generator);
      const auto code = static_cast<uint8_t>(generator());
      if (dtype == DType::kF32) std::memcpy(row + c * 4, &value, 4);
      const uint16_t half = dtype == DType::kF16 ? float_to_f16(value) : float_to_bf16(value);
      if (dtype == DType::kF16 || dtype == DType::kBF16) std::memcpy(row + c * 2, &half, 2);
      if (dtype == DType::kI8) row[c] = std::byte{code};
      if (dtype == DType::kI4) row[c / 2] = std::byte{code};
      if (dtype == DType::kF8E4M3) row[c] = std::byte{(code & 0x7F) == 0x7F ? uint8_t{0} : code};
    }
  }
  const bool fp8 = dtype == DType::kF8E4M3;
  w.scale_stride = fp8 ? (cols + kFp8Block - 1) / kFp8Block : (cols + kIntGroup - 1) / kIntGroup;
  const int64_t scale_rows = fp8 ? (rows + kFp8Block - 1) / kFp8Block : rows;
  w.scale_dtype = fp8 ? DType::kF32 : DType::kBF16;
  t.scales.resize(static_cast<size_t>(scale_rows * w.scale_stride * 4));
  for (int64_t i = 0; i < scale_rows * w.scale_stride; ++i) {
    const float scale = std::exp2(normal(generator)) * 0.01f;
    const uint16_t half = float_to_bf16(scale);
    if (fp8) std::memcpy(t.scales.data() + i * 4, &scale, 4);
    if (!fp8) std::memcpy(t.scales.data() + i * 2, &half, 2);
  }
  w.scales = t.scales.data();
  return t;
}

constexpr DType kWeightFormats[] = {DType::kF32,    DType::kF16, DType::kBF16,
                                    DType::kF8E4M3, DType::kI8,  DType::kI4};

}  // namespace tamis
