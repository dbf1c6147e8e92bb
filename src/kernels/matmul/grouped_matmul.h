// Products of groups of rows, the experts of a layer: group g owns the rows offsets[g] ..
// offsets[g+1) of an array, and a matrix of its own.
//
//   over rows    C[rows of g] = or += A[rows of g] B_g         B_g at b + g * group_stride
//   over inner   C_g = or += A[:, rows of g] B[rows of g, :]   C_g at c + g * group_stride
//
// Each group's product is one of matmul.h, with its order of sums.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/matmul/matmul.h"

namespace tamis {

enum class GroupedOver : uint8_t { kRows, kInner };

template <typename T>
struct GroupedMatmulArgs {
  // Of all rows at once: all.m (kRows) or all.inner (kInner) is their number; b or c is that of
  // group 0.
  MatmulArgs<T> all;
  GroupedOver over = GroupedOver::kRows;
  int64_t group_stride = 0;
  const int64_t* offsets = nullptr;  // [groups + 1], ascending from 0 to the number of rows
  int64_t groups = 0;
};

// Group g's product. `first` and `last` are offsets[g] and offsets[g + 1].
template <typename T>
constexpr MatmulArgs<T> product_of_group(const GroupedMatmulArgs<T>& args, int64_t g, int64_t first,
                                         int64_t last) {
  MatmulArgs<T> p = args.all;
  if (args.over == GroupedOver::kRows) {
    p.a += first * p.a_row;
    p.b += g * args.group_stride;
    if (p.a_bf16 != nullptr) p.a_bf16 += first * p.a_row;
    if (p.b_bf16 != nullptr) p.b_bf16 += g * args.group_stride;
    p.c += first * p.c_row;
    p.m = last - first;
  } else {
    p.a += first * p.a_col;
    p.b += first * p.b_row;
    if (p.a_bf16 != nullptr) p.a_bf16 += first * p.a_col;
    if (p.b_bf16 != nullptr) p.b_bf16 += first * p.b_row;
    p.c += g * args.group_stride;
    p.inner = last - first;
  }
  return p;
}

// Independent, as in matmuls().
template <typename T>
void grouped_matmuls(KernelContext& context, std::span<const GroupedMatmulArgs<T>> args);

}  // namespace tamis
