// C = A B or C += A B for matrices given by strides: the products of the backward pass, where one
// side or the other is transposed.
//
//   C[i,j] = (accumulate ? C[i,j] : 0) + sum_l A[i,l] B[l,j]       A[i,l] = a[i a_row + l a_col]
//
// The order of the sum depends on the inner length alone, never on m, n, the threads or the other
// products of the call. Vector code: inner indices in chunks of 256; in a chunk one fma after the
// other from 0; the chunk's sum is added to C. The reference sums in double.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "kernels/context.h"

namespace tamis {

// Pairs of columns turned by the angles of their row, interleaved as in rope.h: of every `width`
// columns, columns first + 2i and first + 2i + 1 by angle i < half.
template <typename T>
struct TurnedColumns {
  const T *cos = nullptr, *sin = nullptr;  // [m, half]; null: nothing is turned
  int64_t width = 0, first = 0, half = 0;  // width and first in fours, half even
};

template <typename T>
struct MatmulArgs {
  const T* a = nullptr;  // [m, inner]
  int64_t a_row = 0, a_col = 1;
  const T* b = nullptr;  // [inner, n]
  int64_t b_row = 0, b_col = 1;
  T* c = nullptr;  // [m, n], columns side by side
  int64_t c_row = 0;
  int64_t m = 0, n = 0, inner = 0;  // each may be 0
  bool accumulate = false;
  // The same factors rounded to bf16, by the same strides, where the caller has them. Read by
  // "cuda_bf16" alone, which rounds what is not given, and then does not read a or b.
  const uint16_t *a_bf16 = nullptr, *b_bf16 = nullptr;
  // For those that reads_bf16() holds of, and not for groups. C rounded to bf16, by c_row, and then
  // c is not written and nothing accumulated:
  uint16_t* c_bf16 = nullptr;
  TurnedColumns<T> turned = {};  // of it, before it is rounded
  const T* add = nullptr;        // [m, n], by c_row: C = add + A B
};

// Independent products in one parallel loop: no C may be (part of) another's A, B or C.
// T is float or double.
template <typename T>
void matmuls(KernelContext& context, std::span<const MatmulArgs<T>> args);

// Whether products of matrices with these rows and widths, in any roles, are "cuda_bf16" and read
// a_bf16 and b_bf16 where they are given, never a and b: then those may be null. Widths of whole 16
// bytes, and nothing narrow, which stays in float32.
bool reads_bf16(const KernelContext& context, int64_t rows, std::initializer_list<int64_t> widths);

template <typename T>
void matmul(KernelContext& context, const MatmulArgs<T>& args) {
  matmuls<T>(context, std::span<const MatmulArgs<T>>(&args, 1));
}

}  // namespace tamis
