// Rows of heads in bf16: from where they lie to a tile of flash_tiles.cuh, and from a warp's
// fragments back.
#pragma once

#include "kernels/mla_dense/flash_tiles.cuh"

namespace tamis::flash {

// Rows of every head in bf16, of token t of head h at x + h * head + t * row: columns [0, cols),
// then [0, more_cols) of row t of `more`, which the heads share, then zeros. In whole 16 bytes.
struct HeadRows {
  const __nv_bfloat16* x;
  int64_t head;
  int row, cols;
  const __nv_bfloat16* more;
  int more_cols;
};

// Rows of head h from token `token` of the batch on, zeros past `there` of them, without waiting.
template <int kRows, int kCols>
__device__ inline void copy_rows(const HeadRows& s, int64_t h, int64_t token, int64_t there,
                                 Tile<kRows, kCols, false>& to) {
  // kLanes threads have a chunk of a row each, of 8 columns, then the next kLanes chunks.
  constexpr int kEach = kCols / 8, kLanes = kEach & -kEach, kOnce = kThreads / kLanes;
  static_assert(kRows % kOnce == 0);
  const int first = static_cast<int>(threadIdx.x) / kLanes;
  const __nv_bfloat16* own = s.x + h * s.head + (token + first) * s.row;
#pragma unroll
  for (int j = 0; j < kEach / kLanes; ++j) {
    const int col = (j * kLanes + static_cast<int>(threadIdx.x) % kLanes) * 8;
    const bool other = col >= s.cols, column = !other || col < s.cols + s.more_cols;
    const __nv_bfloat16* from =
        other ? s.more + (token + first) * s.more_cols + col - s.cols : own + col;
    const int step = kOnce * (other ? s.more_cols : s.row);
#pragma unroll
    for (int i = 0; i < kRows / kOnce; ++i) {
      const bool here = column && first + i * kOnce < there;
      ptx::cp_async_16(to.values + (first + i * kOnce) * Tile<kRows, kCols, false>::kRow + col,
                       here ? from + i * step : s.x, here);
    }
  }
}

// Row r (0 or 1) of this lane's fragments to columns [0, cols) of `to` in bf16, for all lanes of a
// warp; those whose row is not `there` write nothing. Neighbours exchange pairs, so that each
// writes 8 bytes. change(column, x, y) may change a pair first.
template <int kN, typename Change>
__device__ inline void write_rounded(const float (&x)[kN][4], int r, bool there, uint16_t* to,
                                     int64_t cols, const Change& change) {
  const int lane = static_cast<int>(threadIdx.x % 4), odd = lane % 2;
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t bits[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float a = x[n + e][2 * r], b = x[n + e][2 * r + 1];
      change((n + e) * 8 + lane * 2, a, b);
      bits[e] = pack(a, b);
    }
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, odd != 0 ? bits[0] : bits[1], 1);
    const int c = (n + odd) * 8 + lane / 2 * 4;
    if (there && c < cols) {
      *reinterpret_cast<uint2*>(to + c) =
          odd != 0 ? make_uint2(got, bits[1]) : make_uint2(bits[0], got);
    }
  }
}

struct Unchanged {
  __device__ void operator()(int, float&, float&) const {}
};

// Eight values from column c of a row on, zeros past its `width`.
__device__ inline void read_eight(const float* row, int64_t c, int64_t width, float (&v)[8]) {
  if (c + 8 <= width && reinterpret_cast<uintptr_t>(row + c) % sizeof(float4) == 0) {
    const float4 low = *reinterpret_cast<const float4*>(row + c);
    const float4 high = *reinterpret_cast<const float4*>(row + c + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = c + e < width ? row[c + e] : 0.0f;
}
// The same of bf16, where widths are in eights.
__device__ inline void read_eight(const uint16_t* row, int64_t c, int64_t width, float (&v)[8]) {
  const uint4 q = c < width ? *reinterpret_cast<const uint4*>(row + c) : make_uint4(0, 0, 0, 0);
  const uint32_t pairs[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    v[e] = __uint_as_float(e % 2 == 0 ? pairs[e / 2] << 16 : pairs[e / 2] & 0xFFFF0000u);
  }
}

}  // namespace tamis::flash
