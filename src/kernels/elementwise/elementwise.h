// The small loops over values between the products of a model: rounding, copying rows, checking for
// numbers that are not finite, and the queries of the FP8 indexer. float32; each value by itself.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/kv_layout.h"

namespace tamis {

// x = value, n times.
struct FillArgs {
  float* x = nullptr;
  int64_t n = 0;
  float value = 0;
};
void fill(KernelContext& context, const FillArgs& args);

// Rounds x [rows, width], rows `stride` apart, to bf16 in place.
struct RoundRowsArgs {
  float* x = nullptr;
  int64_t rows = 0, width = 0, stride = 0;
};
void round_rows(KernelContext& context, const RoundRowsArgs& args);

// y[r] = x[row[r]], rows of `width`.
struct GatherRowsArgs {
  const float* x = nullptr;
  const int32_t* row = nullptr;  // [rows]
  int64_t rows = 0, width = 0;
  float* y = nullptr;
};
void gather_rows(KernelContext& context, const GatherRowsArgs& args);

// Marks the sequence of every row that is not all finite: failed[sequence] = mark, unless an
// earlier mark is there (it is not negative). Row r is of token `token[r]`, of token r without it.
struct CheckFiniteArgs {
  const float* x = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  const int32_t* token = nullptr;     // [rows] or null
  const int32_t* sequence = nullptr;  // [tokens]
  int32_t mark = 0;
  int32_t* failed = nullptr;  // [sequences]
};
void check_finite(KernelContext& context, const CheckFiniteArgs& args);

// The same for flags [tokens]: 1 marks.
struct CheckFlagsArgs {
  const uint8_t* flags = nullptr;
  int64_t tokens = 0;
  const int32_t* sequence = nullptr;
  int32_t mark = 0;
  int32_t* failed = nullptr;
};
void check_flags(KernelContext& context, const CheckFlagsArgs& args);

// The weights of the indexer's heads, and its queries. Exact: w *= head_scale, then *= dim_scale.
// native: w is rounded to bf16 between the two and each query [dim] is quantised (act_quant); q
// becomes e4m3 * (s_b / s_0) for the scale s_b of its block, and w takes the factor s_0.
struct IndexQueryArgs {
  float* q = nullptr;  // [rows, dim], rows = tokens * heads
  float* w = nullptr;  // [rows]
  int64_t rows = 0, dim = 0;
  float head_scale = 1, dim_scale = 1;
  bool native = false, ue8m0 = false;
};
void index_query(KernelContext& context, const IndexQueryArgs& args);

// indices [tokens, k]: the last k positions up to the token's own, ascending, -1 past them.
struct SelectWindowArgs {
  const int32_t* position = nullptr;  // [tokens]
  int64_t tokens = 0, k = 0;
  int32_t* indices = nullptr;
};
void select_window(KernelContext& context, const SelectWindowArgs& args);

}  // namespace tamis
