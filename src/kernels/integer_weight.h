// The two factors of a weight in I8 or I4 (weight.h): small integers, and one scale for 32 columns.
#pragma once

#include <cstdint>

#include "kernels/weight.h"

namespace tamis {

inline bool is_integer(const Weight& w) { return w.dtype == DType::kI8 || w.dtype == DType::kI4; }

// q of W[row, begin .. begin+count).
void integer_row(const Weight& w, int64_t row, int64_t begin, int64_t count, int8_t* out);
// The scale of the group that W[row, col] lies in.
float group_scale(const Weight& w, int64_t row, int64_t col);

}  // namespace tamis
