// Tiles of 64 rows and their products on the tensor cores: what the kernels of dense attention in
// training and of the warm-up loss are made of. Factors are float32 taken apart into two bf16
// values (kExact) or rounded to one; sums in float32.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla_dense/mla_dense_backward.h"
#include "kernels/selection_mask.h"

namespace tamis::flash {

constexpr int kThreads = 128, kBlock = 64;  // queries or keys of a block, 16 a warp
constexpr float kLog2e = 1.4426950408889634F;

using Sequence = MlaSequence<float>;

// Rows of kCols bf16 values, high parts and then low ones; no two of 8 rows meet a bank.
template <int kRows, int kCols, bool kExact>
struct Tile {
  static constexpr int kRow = kCols + 8;
  __nv_bfloat16 values[kRows * kRow * (kExact ? 2 : 1)];
};

__device__ inline uint32_t pack(float x, float y) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ inline float low_part(float x) { return x - __bfloat162float(__float2bfloat16_rn(x)); }

// Columns [0, cols) of x, then [0, more_cols) of more, then zeros; `rows` of them are there.
struct Source {
  const float* x;
  int64_t stride;
  int cols;
  const float* more;
  int64_t more_stride;
  int more_cols;
  int64_t rows;
  bool quads;  // both begin and step in whole quads on 16 bytes
};

__device__ inline Source source(const float* x, int64_t stride, int64_t cols, int64_t rows,
                                const float* more = nullptr, int64_t more_stride = 0,
                                int64_t more_cols = 0) {
  const auto at = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(more);
  return {x,
          stride,
          static_cast<int>(cols),
          more,
          more_stride,
          static_cast<int>(more_cols),
          rows,
          at % 16 == 0 && (stride | more_stride | cols | more_cols) % 4 == 0};
}

template <int kRows, int kCols, bool kExact>
__device__ inline void load_tile(const Source& s, Tile<kRows, kCols, kExact>& tile) {
  using T = Tile<kRows, kCols, kExact>;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kCols / 4; i += kThreads) {
    const int row = i / (kCols / 4), col = i % (kCols / 4) * 4;
    float v[4] = {};
    if (row < s.rows && s.quads) {
      float4 q = make_float4(0, 0, 0, 0);
      if (col < s.cols) {
        q = *reinterpret_cast<const float4*>(s.x + row * s.stride + col);
      } else if (col < s.cols + s.more_cols) {
        q = *reinterpret_cast<const float4*>(s.more + row * s.more_stride + col - s.cols);
      }
      v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else if (row < s.rows) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int c = col + e;
        if (c < s.cols) {
          v[e] = s.x[row * s.stride + c];
        } else if (c < s.cols + s.more_cols) {
          v[e] = s.more[row * s.more_stride + c - s.cols];
        }
      }
    }
    auto* to = reinterpret_cast<uint2*>(tile.values + row * T::kRow + col);
    *to = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
    if constexpr (kExact) {
      to = reinterpret_cast<uint2*>(tile.values + kRows * T::kRow + row * T::kRow + col);
      *to = make_uint2(pack(low_part(v[0]), low_part(v[1])), pack(low_part(v[2]), low_part(v[3])));
    }
  }
}

// A factor [16, 16 * kK] of a warp in registers.
template <int kK, bool kExact>
struct Factor {
  uint32_t high[kK][4], low[kExact ? kK : 1][4];
};

// d += a b for one 16 x 8 tile and 16 inner indices.
template <bool kExact>
__device__ inline void multiply(float (&d)[4], const uint32_t (&high)[4], const uint32_t (&low)[4],
                                const uint32_t* b_high, const uint32_t* b_low) {
  if constexpr (kExact) {
    mma_bf16(d, low, b_high[0], b_high[1]);
    mma_bf16(d, high, b_low[0], b_low[1]);
  }
  mma_bf16(d, high, b_high[0], b_high[1]);
}

// s[16 rows of a from `row`, kN * 8 rows of b] += a b^T.
template <int kN, int kRowsA, int kRowsB, int kCols, bool kExact>
__device__ inline void rows_by_rows(const Tile<kRowsA, kCols, kExact>& a, int row,
                                    const Tile<kRowsB, kCols, kExact>& b, float (&s)[kN][4]) {
  constexpr int kRow = kCols + 8;
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
#pragma unroll
  for (int k = 0; k < kCols; k += 16) {
    uint32_t high[4], low[4] = {};
    const __nv_bfloat16* from = a.values + (row + j % 2 * 8 + i) * kRow + k + j / 2 * 8;
    ptx::ldmatrix_x4(high, from);
    if constexpr (kExact) ptx::ldmatrix_x4(low, from + kRowsA * kRow);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b_high[4], b_low[4] = {};
      const __nv_bfloat16* at = b.values + (n * 8 + j / 2 * 8 + i) * kRow + k + j % 2 * 8;
      ptx::ldmatrix_x4(b_high, at);
      if constexpr (kExact) ptx::ldmatrix_x4(b_low, at + kRowsB * kRow);
      multiply<kExact>(s[n], high, low, b_high, b_low);
      multiply<kExact>(s[n + 1], high, low, b_high + 2, b_low + 2);
    }
  }
}

// The scores of a warp as a factor.
template <int kN, bool kExact>
__device__ inline Factor<kN / 2, kExact> factor_of(const float (&s)[kN][4]) {
  Factor<kN / 2, kExact> f;
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
    const float(&x)[4] = s[2 * k];
    const float(&y)[4] = s[2 * k + 1];
    f.high[k][0] = pack(x[0], x[1]), f.high[k][1] = pack(x[2], x[3]);
    f.high[k][2] = pack(y[0], y[1]), f.high[k][3] = pack(y[2], y[3]);
    if constexpr (kExact) {
      f.low[k][0] = pack(low_part(x[0]), low_part(x[1]));
      f.low[k][1] = pack(low_part(x[2]), low_part(x[3]));
      f.low[k][2] = pack(low_part(y[0]), low_part(y[1]));
      f.low[k][3] = pack(low_part(y[2]), low_part(y[3]));
    }
  }
  return f;
}

// d[16, kCols] += f [16, 16 kK] b [16 kK, kCols].
template <int kK, int kRows, int kCols, bool kExact>
__device__ inline void by_columns(const Factor<kK, kExact>& f, const Tile<kRows, kCols, kExact>& b,
                                  float (&d)[kCols / 8][4]) {
  constexpr int kRow = kCols + 8;
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
#pragma unroll
  for (int k = 0; k < kK; ++k) {
#pragma unroll
    for (int n = 0; n < kCols / 8; n += 2) {
      uint32_t b_high[4], b_low[4] = {};
      const __nv_bfloat16* at = b.values + (k * 16 + j % 2 * 8 + i) * kRow + n * 8 + j / 2 * 8;
      ptx::ldmatrix_x4_trans(b_high, at);
      if constexpr (kExact) ptx::ldmatrix_x4_trans(b_low, at + kRows * kRow);
      multiply<kExact>(d[n], f.high[k], f.low[kExact ? k : 0], b_high, b_low);
      multiply<kExact>(d[n + 1], f.high[k], f.low[kExact ? k : 0], b_high + 2, b_low + 2);
    }
  }
}

// Rows [row, row + kRows) of x [.., kCols], zeros past `there` of them, without waiting.
template <int kRows, int kCols>
__device__ inline void copy_tile(const __nv_bfloat16* x, int64_t row, int64_t there,
                                 Tile<kRows, kCols, false>& to) {
  constexpr int kEach = kCols / 8;
  const __nv_bfloat16* from = x + row * kCols;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kEach; i += kThreads) {
    const int r = i / kEach, col = i % kEach * 8;
    const bool here = r < there;
    ptx::cp_async_16(to.values + r * Tile<kRows, kCols, false>::kRow + col,
                     here ? from + r * kCols + col : x, here);
  }
}

// ---- where things lie

__device__ inline int64_t left(const Sequence& in, int64_t first) { return in.tokens - first; }
__device__ inline Source queries(const Sequence& in, int64_t first, int64_t h) {
  const int64_t qk = in.nope + in.rope, row = in.heads * qk;
  return source(in.q + first * row + h * qk, row, qk, left(in, first));
}
__device__ inline Source keys(const Sequence& in, int64_t first, int64_t h) {
  const int64_t kv = in.nope + in.v_dim, row = in.heads * kv;
  return source(in.kv + first * row + h * kv, row, in.nope, left(in, first),
                in.k_pe + first * in.rope, in.rope, in.rope);
}
__device__ inline Source values(const Sequence& in, int64_t first, int64_t h) {
  const int64_t kv = in.nope + in.v_dim, row = in.heads * kv;
  return source(in.kv + first * row + h * kv + in.nope, row, in.v_dim, left(in, first));
}
__device__ inline Source outputs(const Sequence& in, const float* x, int64_t first, int64_t h) {
  const int64_t row = in.heads * in.v_dim;
  return source(x + first * row + h * in.v_dim, row, in.v_dim, left(in, first));
}

// What was asked for is in shared memory, and every thread has left what it was reading.
__device__ inline void arrive() {
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
}

template <bool kExact>
__device__ inline float power(float x) {
  return kExact ? exp2f(x) : ptx::ex2(x);
}

// Of those: one tile is read while the other is multiplied.
template <bool kExact>
constexpr int kStages = kExact ? 1 : 2;

// Calls start(x, stage) and multiply(x, stage) for x = next(first), next(x + step), .. below end:
// next(x) is the first at or after x that counts, the same for every thread.
template <int kCount, typename Next, typename Start, typename Multiply>
__device__ inline void pipeline(int first, int end, int step, const Next& next, const Start& start,
                                const Multiply& multiply) {
  int stage = 0, x = next(first);
  if (x < end) start(x, 0);
  while (x < end) {
    const int after = next(x + step);
    arrive();
    if (kCount > 1 && after < end) start(after, 1 - stage);
    multiply(x, stage);
    x = after;
    stage = (stage + 1) % kCount;
    if (kCount > 1 || after >= end) continue;
    __syncthreads();
    start(after, 0);
  }
}

// ---- masks

// The first tile of keys at or after `tile` and before `end` that the tile of queries from token
// `token` on attends to; else a tile at or after `end`.
__device__ inline int next_tile(const SelectionMask& mask, int64_t token, int tile, int end) {
  if (!mask) return tile;
  const uint64_t* words = mask.bits + mask.words * mask.stride + token;
  while (tile < end) {
    const uint64_t left = words[tile / 64 * mask.stride] >> (tile % 64);
    if (left != 0) return tile + __ffsll(static_cast<long long>(left)) - 1;
    tile = (tile / 64 + 1) * 64;
  }
  return tile;
}

// Bit i: whether row `row` of a sequence that begins at token `first` attends to key `key` + i of
// it, i < 64 - key % 64. `there`: the row exists; with a mask the others attend to nothing.
__device__ inline uint64_t seen_keys(const SelectionMask& mask, int64_t first, int row, bool there,
                                     int key) {
  if (!mask)
    return row - key >= 63 ? ~uint64_t{0} : row < key ? 0 : (uint64_t{2} << (row - key)) - 1;
  return there ? mask.bits[key / 64 * mask.stride + first + row] >> (key % 64) : 0;
}

// Rows of a head side by side in bf16: columns [0, cols) of x, then [0, more_cols) of more, zeros
// to kCols. x [tokens, heads, stride], more [tokens, more_cols] for all heads. Eight values a
// thread.
struct PackRows {
  const float* x;
  int64_t stride, cols;
  const float* more;
  int64_t more_cols, tokens, heads;
  __nv_bfloat16* to;  // [heads, tokens, kCols]
};

template <int kCols>
__global__ void __launch_bounds__(kThreads) pack_rows(const PackRows p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = i / (kCols / 8), c0 = i % (kCols / 8) * 8;
  if (row >= p.tokens * p.heads) return;
  const int64_t t = row / p.heads, h = row % p.heads;
  const float* x = p.x + row * p.stride;
  const float* more = p.more + t * p.more_cols - p.cols;
  float v[8];
#pragma unroll
  for (int e = 0; e < 8; e += 4) {
    const int64_t c = c0 + e;
    const float* from = c + 4 <= p.cols ? x + c : more + c;
    const bool whole = c + 4 <= p.cols || (c >= p.cols && c + 4 <= p.cols + p.more_cols);
    if (whole && reinterpret_cast<uintptr_t>(from) % sizeof(float4) == 0) {
      const float4 quad = *reinterpret_cast<const float4*>(from);
      v[e] = quad.x, v[e + 1] = quad.y, v[e + 2] = quad.z, v[e + 3] = quad.w;
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t at = c + j;
      v[e + j] = at < p.cols ? x[at] : at < p.cols + p.more_cols ? more[at] : 0.0f;
    }
  }
  *reinterpret_cast<uint4*>(p.to + (h * p.tokens + t) * kCols + c0) =
      make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

// ---- launches

inline unsigned blocks_of(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

template <typename... Args>
void start(KernelContext& context, void (*kernel)(Args...), dim3 grid, size_t shared,
           const char* name, Args... args) {
  if (shared > 48 * 1024) {
    allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(shared), name);
  }
  kernel<<<grid, kThreads, shared, stream_of(context)>>>(args...);
  check_launch(name);
}

}  // namespace tamis::flash
