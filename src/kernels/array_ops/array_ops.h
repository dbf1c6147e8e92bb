// The plain loops over arrays between the operations of training. T is float, or double on the
// host. Each value by itself; sums in T, in the order that is written here.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

// y += x, n values.
template <typename T>
void add_values(KernelContext& context, const T* x, int64_t n, T* y);

// x *= factor, n values.
template <typename T>
void scale_values(KernelContext& context, T* x, int64_t n, T factor);

// y = x rounded to bf16, n values.
void round_values(KernelContext& context, const float* x, int64_t n, uint16_t* y);

// `width` columns of every row.
template <typename T>
struct CopyColumnsArgs {
  const T* from = nullptr;  // [rows, from_stride]
  int64_t from_stride = 0, rows = 0, width = 0;
  T* to = nullptr;  // [rows, to_stride]
  int64_t to_stride = 0;
};
template <typename T>
void copy_columns(KernelContext& context, const CopyColumnsArgs<T>& args);

// Rows by number: y[r] = x[row[r]], or back: x[row[r]] += y[r], where no number comes twice.
template <typename T>
struct PickRowsArgs {
  const T* x = nullptr;          // [.., width]
  const int32_t* row = nullptr;  // [rows]
  int64_t rows = 0, width = 0;
  T* y = nullptr;  // [rows, width]
};
template <typename T>
void pick_rows(KernelContext& context, const PickRowsArgs<T>& args);
template <typename T>
struct ReturnRowsArgs {
  const T* y = nullptr;          // [rows, width]
  const int32_t* row = nullptr;  // [rows], all different
  int64_t rows = 0, width = 0;
  T* x = nullptr;  // [.., width], added to
};
template <typename T>
void return_rows(KernelContext& context, const ReturnRowsArgs<T>& args);

// y[t] += weights[t,i] * rows[row_of[t,i]] for i = 0, 1, ..
template <typename T>
struct AddExpertsArgs {
  const T* rows = nullptr;          // [.., width]
  const int32_t* row_of = nullptr;  // [tokens, num_chosen]
  const T* weights = nullptr;       // [tokens, num_chosen]
  int64_t tokens = 0, num_chosen = 0, width = 0;
  T* y = nullptr;  // [tokens, width]
};
template <typename T>
void add_experts(KernelContext& context, const AddExpertsArgs<T>& args);

// best[r]: the column of the largest value of x[r], the first of equal ones. NaN is never larger.
template <typename T>
struct LargestColumnsArgs {
  const T* x = nullptr;  // [rows, width], width > 0
  int64_t rows = 0, width = 0;
  int32_t* best = nullptr;  // [rows]
};
template <typename T>
void largest_columns(KernelContext& context, const LargestColumnsArgs<T>& args);

}  // namespace tamis
