// A weight matrix as it lies in a mapped checkpoint file, or a slice of one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace tamis {

// W [rows, cols], y = W x. Owns nothing. Formats:
//   F32, F16, BF16        scales unused
//   F8_E4M3               value = e4m3 * scale[r/128, c/128]; ceil blocks at the edges
//   I8, I4                value = q * scale[r, c/32]; symmetric, one scale per 32 columns
// A slice keeps its place in the grid of scales through row_offset and col_offset.
struct Weight {
  const std::byte* data = nullptr;  // element [0,0] of the slice
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  int64_t row_bytes = 0;  // bytes from one row to the next

  const std::byte* scales = nullptr;  // element [0,0] of the whole matrix's scales
  DType scale_dtype = DType::kF32;    // F32 for F8_E4M3, BF16 for I8 and I4
  int64_t scale_stride = 0;           // scales from one row of scales to the next
  int64_t row_offset = 0, col_offset = 0;

  // Bytes of weights and scales that a product with the whole slice reads.
  int64_t bytes() const;

  Weight row_slice(int64_t begin, int64_t count) const;
  // begin must be even for I4 and a multiple of 32 for I8 and I4.
  Weight col_slice(int64_t begin, int64_t count) const;
};

constexpr int64_t kFp8Block = 128;  // rows and columns that share one scale
constexpr int64_t kIntGroup = 32;   // columns that share one scale

// W[row, begin .. begin+count) as float. The definition: vector code must give the same bits.
void dequantize_row(const Weight& w, int64_t row, int64_t begin, int64_t count, float* out);

}  // namespace tamis
