// What the kernels that round to FP8 by blocks have in common: the scale of a block, loads of four
// neighbours, and the blocks of rows of groups.
#pragma once

#include <cstdint>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/fp8_round/fp8_round_impl.h"

namespace tamis::fp8 {

constexpr int kThreads = 256, kEach = 4, kBlock = 128;
constexpr int kRowsAtOnce = kThreads / (kBlock / kEach);  // of a tile of whole blocks

__device__ inline float scale_of(float largest, bool weight) {
  if (weight) return ceil_power_of_two(fmaxf(largest, kLeastWeight) / kFp8Largest);
  return fmaxf(ceil_power_of_two(largest * (1.0f / kFp8Largest)), kLeastFp8Scale);
}

// Rows of float, or of bf16.
struct Source {
  const float* x;
  const uint16_t* x_bf16;
  int64_t stride, width;
};

// Where four neighbours may be moved at once.
template <bool kBf16>
__device__ inline bool on_words(const void* p, int64_t stride, int64_t width) {
  constexpr uintptr_t kWord = kBf16 ? sizeof(uint2) : sizeof(float4);
  return width % kEach == 0 && stride % kEach == 0 && reinterpret_cast<uintptr_t>(p) % kWord == 0;
}
template <bool kBf16>
__device__ inline bool on_words(const Source& s) {
  return on_words<kBf16>(kBf16 ? static_cast<const void*>(s.x_bf16) : s.x, s.stride, s.width);
}

// Four values of a row from column c on, zeros past its width.
template <bool kBf16>
__device__ inline float4 load(const Source& s, bool words, int64_t row, int64_t c) {
  if (c >= s.width) return make_float4(0, 0, 0, 0);
  const int64_t at = row * s.stride + c;
  if (words) {
    if constexpr (kBf16) {
      const uint2 v = *reinterpret_cast<const uint2*>(s.x_bf16 + at);
      return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000u),
                         __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xFFFF0000u));
    } else {
      return *reinterpret_cast<const float4*>(s.x + at);
    }
  }
  const auto one = [&](int e) -> float {
    if (c + e >= s.width) return 0;
    return kBf16 ? bf16_bits_to_float(s.x_bf16[at + e]) : s.x[at + e];
  };
  return make_float4(one(0), one(1), one(2), one(3));
}

__device__ inline float largest_of(const float4& v) {
  return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

// The largest so far and of four more, column by column.
__device__ inline float4 largest_each(const float4& a, const float4& v) {
  return make_float4(fmaxf(a.x, fabsf(v.x)), fmaxf(a.y, fabsf(v.y)), fmaxf(a.z, fabsf(v.z)),
                     fmaxf(a.w, fabsf(v.w)));
}

__device__ inline float warp_largest(float x) {
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
  }
  return x;
}

__device__ inline float4 all(float x) { return make_float4(x, x, x, x); }

__device__ inline float4 scales_of(const float4& largest) {
  return make_float4(scale_of(largest.x, false), scale_of(largest.y, false),
                     scale_of(largest.z, false), scale_of(largest.w, false));
}

// Scales are powers of two: dividing is multiplying, exactly.
__device__ inline uint8_t code_of(float x, float inverse) {
  return float_to_e4m3_bits(x * inverse);
}

// Part of a group's rows.
struct GroupPart {
  int64_t group, begin, end;  // and its rows
  int64_t part;               // which of its parts
  int64_t blocks;             // blocks of 128 rows of the groups before it
};

// Part `index` of the groups' rows, each cut into parts of `size` rows from its first one on;
// without offsets of `rows` rows. Every lane of a warp calls it. False past the last.
__device__ inline bool find_part(const int64_t* offsets, int64_t groups, int64_t rows, int64_t size,
                                 int64_t index, GroupPart& found) {
  if (offsets == nullptr) {
    found = {0, 0, rows, index, 0};
    return index * size < rows;
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t before = 0, blocks_before = 0;
  for (int64_t g0 = 0; g0 < groups; g0 += 32) {
    const int64_t g = g0 + lane;
    const int64_t begin = g < groups ? offsets[g] : 0, end = g < groups ? offsets[g + 1] : 0;
    const int64_t own = (end - begin + size - 1) / size;
    const int64_t own_blocks = (end - begin + kBlock - 1) / kBlock;
    int64_t upto = own, blocks = own_blocks;  // those of the groups up to this one
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t other = __shfl_up_sync(0xFFFFFFFFu, upto, offset);
      const int64_t more = __shfl_up_sync(0xFFFFFFFFu, blocks, offset);
      if (lane >= offset) upto += other, blocks += more;
    }
    upto += before;
    blocks += blocks_before;
    const unsigned here = __ballot_sync(0xFFFFFFFFu, index < upto);
    if (here != 0) {
      const int source = __ffs(static_cast<int>(here)) - 1;
      found.group = g0 + source;
      found.begin = __shfl_sync(0xFFFFFFFFu, begin, source);
      found.end = __shfl_sync(0xFFFFFFFFu, end, source);
      found.part = __shfl_sync(0xFFFFFFFFu, index - (upto - own), source);
      found.blocks = __shfl_sync(0xFFFFFFFFu, blocks - own_blocks, source);
      return true;
    }
    before = __shfl_sync(0xFFFFFFFFu, upto, 31);
    blocks_before = __shfl_sync(0xFFFFFFFFu, blocks, 31);
  }
  return false;
}

}  // namespace tamis::fp8
