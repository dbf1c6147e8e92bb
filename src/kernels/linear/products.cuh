// What the kernels of linear, per_head_linear and grouped_linear have in common: a set of products
// y = W x that one launch computes, and readers of W and x.
//
// blockIdx.z is the product, blockIdx.x a tile of rows of W, blockIdx.y the first of the tiles of
// rows of x that the block works through.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_products.h"

namespace tamis {

struct Products {
  static constexpr int kMax = kProductsAtOnce;

  LinearArgs list[kMax];  // heads: list[0] is the pattern
  int count = 0;          // products, heads, or those of groups and others

  // Heads: product h is rows [h * head_rows, + rows) of list[0].w, x and y shifted by the strides.
  bool heads = false;
  int64_t head_rows = 0, rows = 0, x_head_stride = 0, y_head_stride = 0;

  // Groups: list[j], j < grouped, stands for `groups` products: weights[j][g] on the rows
  // [offsets[g], offsets[g+1]) of its x and y. The products of the list after those follow.
  int grouped = 0, groups = 0;
  const Weight* weights[kGroupedAtOnce] = {};  // [groups] each, on the device
  const int64_t* offsets = nullptr;            // [groups + 1], on the device

  __device__ LinearArgs product(int i) const {
    if (heads) {
      LinearArgs p = list[0];
      p.x += i * x_head_stride;
      p.y += i * y_head_stride;
      p.w.data += i * head_rows * p.w.row_bytes;
      p.w.row_offset += i * head_rows;
      p.w.rows = rows;
      return p;
    }
    if (i >= grouped * groups) return list[i - grouped * groups + grouped];
    const int which = i / groups, g = i % groups;
    LinearArgs p = list[which];
    const int64_t first = offsets[g];
    p.m = offsets[g + 1] - first;
    p.x += first * p.x_stride;
    p.y += first * p.y_stride;
    p.w = weights[which][g];
    return p;
  }
};

// Columns of W in 16 bytes.
template <DType T>
constexpr int kPiece = T == DType::kF32  ? 4
                       : T == DType::kI4 ? 32
                                         : 8;
template <>
inline constexpr int kPiece<DType::kF8E4M3> = 16;
template <>
inline constexpr int kPiece<DType::kI8> = 16;

// Whether 16-byte loads of pieces of W work: every row starts on 16 bytes, a piece has one scale.
template <DType T>
__device__ inline bool piecewise(const Weight& w) {
  return reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && w.row_bytes % 16 == 0 &&
         w.col_offset % kPiece<T> == 0;
}

__device__ inline bool by_fours(const float* x, int64_t stride) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride % 4 == 0;
}

// The scale of the piece at [row, col]; 1 for formats without.
template <DType T>
__device__ inline float piece_scale(const Weight& w, int64_t row, int64_t col) {
  const int64_t r = row + w.row_offset, c = col + w.col_offset;
  if constexpr (T == DType::kF8E4M3) {
    return reinterpret_cast<const float*>(w.scales)[r / kFp8Block * w.scale_stride + c / kFp8Block];
  } else if constexpr (T == DType::kI8 || T == DType::kI4) {
    return bf16_bits_to_float(
        reinterpret_cast<const uint16_t*>(w.scales)[r * w.scale_stride + c / kIntGroup]);
  } else {
    return 1.0f;
  }
}

__device__ inline float2 halves(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

// Four columns from their bits: `words` begins with the word of the first, I4 uses its low or high
// half. Each value is rounded as dequantize_row of weight.h rounds it.
template <DType T>
__device__ inline float4 decode4(const uint32_t* words, int half, float scale) {
  if constexpr (T == DType::kF32) {
    return make_float4(__uint_as_float(words[0]), __uint_as_float(words[1]),
                       __uint_as_float(words[2]), __uint_as_float(words[3]));
  } else if constexpr (T == DType::kBF16) {
    return make_float4(__uint_as_float(words[0] << 16), __uint_as_float(words[0] & 0xFFFF0000u),
                       __uint_as_float(words[1] << 16), __uint_as_float(words[1] & 0xFFFF0000u));
  } else if constexpr (T == DType::kF16) {
    const float2 a = halves(words[0]), b = halves(words[1]);
    return make_float4(a.x, a.y, b.x, b.y);
  } else if constexpr (T == DType::kF8E4M3) {
    const auto pair = [&](uint32_t bits) {
      return __half22float2(
          __half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bits), __NV_E4M3)));
    };
    const float2 a = pair(words[0] & 0xFFFFu), b = pair(words[0] >> 16);
    return make_float4(a.x * scale, a.y * scale, b.x * scale, b.y * scale);
  } else if constexpr (T == DType::kI8) {
    const auto at = [&](int k) {
      return static_cast<float>(static_cast<int8_t>(words[0] >> (8 * k))) * scale;
    };
    return make_float4(at(0), at(1), at(2), at(3));
  } else {
    const auto at = [&](int k) {
      const auto nibble = static_cast<int32_t>(words[0] << (28 - 16 * half - 4 * k)) >> 28;
      return static_cast<float>(nibble) * scale;
    };
    return make_float4(at(0), at(1), at(2), at(3));
  }
}

// W[row, col .. col+4), all of it inside a weight that is piecewise().
template <DType T>
__device__ inline float4 inner_weight4(const Weight& w, int64_t row, int64_t col) {
  const std::byte* p = w.data + row * w.row_bytes;
  const float scale = piece_scale<T>(w, row, col);
  if constexpr (T == DType::kF32) {
    const uint4 raw = reinterpret_cast<const uint4*>(p)[col / 4];
    return decode4<T>(&raw.x, 0, scale);
  } else if constexpr (kPiece<T> == 8) {
    const uint2 raw = reinterpret_cast<const uint2*>(p)[col / 4];
    return decode4<T>(&raw.x, 0, scale);
  } else if constexpr (kPiece<T> == 16) {
    const uint32_t raw = reinterpret_cast<const uint32_t*>(p)[col / 4];
    return decode4<T>(&raw, 0, scale);
  } else {
    const uint32_t raw = reinterpret_cast<const uint16_t*>(p)[col / 4];
    return decode4<T>(&raw, 0, scale);
  }
}

// W[row, col .. col+4), 0 past the last row or column. `fast` is piecewise().
template <DType T>
__device__ inline float4 weight4(const Weight& w, bool fast, int64_t row, int64_t col) {
  float v[4] = {};
  if (row >= w.rows || col >= w.cols) return make_float4(0, 0, 0, 0);
  if (fast && col + 4 <= w.cols) return inner_weight4<T>(w, row, col);
  for (int k = 0; k < 4; ++k) {
    if (col + k < w.cols) v[k] = weight_value(w, row, col + k);
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

// x[col .. col+4) of a row of `cols` floats, 0 past its end. `fast` is by_fours().
__device__ inline float4 row4(const float* x, bool fast, int64_t col, int64_t cols) {
  if (fast && col + 4 <= cols) return *reinterpret_cast<const float4*>(x + col);
  float v[4] = {};
  for (int k = 0; k < 4; ++k) {
    if (col + k < cols) v[k] = x[col + k];
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

}  // namespace tamis
