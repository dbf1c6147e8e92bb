// mla_dense of one sequence in training on CUDA without scores in memory: tiles of 64 queries by 64
// keys on the tensor cores, the softmax of a row kept running (FlashAttention, arXiv 2205.14135 and
// 2307.08691).
//
// Every float32 factor is taken apart into two bf16 values and a product is high high + high low +
// low high, off by at most 3.01 * 2^-18 of it; with `matmul` forced to cuda_bf16, high high alone.
// Sums in float32.
//
// Backward: the forward pass again for the rows' log sums and outputs, then one kernel whose blocks
// own 64 keys and walk over the queries that see them (dk, dv), and one whose blocks own 64 queries
// (dq). No atomics: dk_pe is a sum over heads, in order, of each head's part. Bound by the tensor
// cores and the exponentials.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla_dense/mla_dense_backward_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 128, kBlock = 64;                // queries or keys of a block, 16 a warp
constexpr int kOutSlot = 2, kRowSlot = 3, kRopeSlot = 4;  // of device_scratch
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

// ---- forward

// out as in mla_dense; log_sum [heads, tokens] or null: of the row's exponentials, base 2.
template <int kQk, int kV, bool kExact>
__global__ void __launch_bounds__(kThreads)
    flash_forward(const Sequence in, float* out, float* log_sum) {
  constexpr int kN = kBlock / 8;
  extern __shared__ __align__(16) unsigned char space[];
  auto& q = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(space);
  auto& k = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(&q + 1);
  auto& v = *reinterpret_cast<Tile<kBlock, kV, kExact>*>(&k + 1);
  const int64_t h = blockIdx.y;
  const int64_t q0 = (int64_t{gridDim.x} - 1 - blockIdx.x) * kBlock;  // long rows first
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = q0 + warp * 16 + lane / 4;
  const float scale = in.softmax_scale * kLog2e;
  load_tile(queries(in, q0, h), q);
  float o[kV / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int64_t k0 = 0; k0 <= q0 && k0 < in.tokens; k0 += kBlock) {
    __syncthreads();
    load_tile(keys(in, k0, h), k);
    load_tile(values(in, k0, h), v);
    __syncthreads();
    float s[kN][4] = {};
    rows_by_rows<kN>(q, warp * 16, k, s);
    float most[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t key = k0 + n * 8 + lane % 4 * 2 + e % 2;
        s[n][e] = key <= row + e / 2 * 8 && key < in.tokens ? s[n][e] * scale : -INFINITY;
        most[e / 2] = fmaxf(most[e / 2], s[n][e]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 2));
      const float keep = exp2f(top[r] - most[r]);
      top[r] = most[r];
      sum[r] *= keep;
#pragma unroll
      for (auto& tile : o) {
        tile[2 * r] *= keep;
        tile[2 * r + 1] *= keep;
      }
    }
#pragma unroll
    for (auto& tile : s) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tile[e] = exp2f(tile[e] - top[e / 2]);
        sum[e / 2] += tile[e];
      }
    }
    by_columns(factor_of<kN, kExact>(s), v, o);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 2);
    const int64_t t = row + r * 8;
    if (t >= in.tokens) continue;
    float* to = out + (t * in.heads + h) * in.v_dim;
#pragma unroll
    for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = n * 8 + lane % 4 * 2 + e;
        if (c < in.v_dim) to[c] = o[n][2 * r + e] / sum[r];
      }
    }
    if (log_sum != nullptr && lane % 4 == 0) log_sum[h * in.tokens + t] = top[r] + log2f(sum[r]);
  }
}

// ---- backward

// delta[h, t] = d_out[t, h] . out[t, h]; a warp each.
__global__ void __launch_bounds__(kThreads)
    flash_delta(const MlaDenseBackwardArgs<float> a, const float* out, float* delta) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (row >= a.in.tokens * a.in.heads) return;
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; c < a.in.v_dim; c += 32) {
    sum = fmaf(a.d_out[row * a.in.v_dim + c], out[row * a.in.v_dim + c], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[row % a.in.heads * a.in.tokens + row / a.in.heads] = sum;
}

struct Backward {
  MlaDenseBackwardArgs<float> a;
  const float* log_sum;  // [heads, tokens]
  const float* delta;    // [heads, tokens]
  float* dk_pe;          // [heads, tokens, rope]
};

// Queries that a block of keys reads at a time, and keys of a block of queries: fewer where the
// rows are long.
template <int kQk>
constexpr int kOthers = kQk > 96 ? 32 : 64;

template <int kQk, int kV, bool kExact>
__global__ void __launch_bounds__(kThreads) flash_keys(const Backward b) {
  constexpr int kQ = kOthers<kQk>, kN = kQ / 8;
  extern __shared__ __align__(16) unsigned char space[];
  auto& k = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(space);
  auto& v = *reinterpret_cast<Tile<kBlock, kV, kExact>*>(&k + 1);
  auto& q = *reinterpret_cast<Tile<kQ, kQk, kExact>*>(&v + 1);
  auto& d_o = *reinterpret_cast<Tile<kQ, kV, kExact>*>(&q + 1);
  auto* log_sum = reinterpret_cast<float*>(&d_o + 1);
  float* delta = log_sum + kQ;
  const Sequence& in = b.a.in;
  const int64_t h = blockIdx.y, k0 = int64_t{blockIdx.x} * kBlock;  // those seen by most first
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t key = k0 + warp * 16 + lane / 4;
  load_tile(keys(in, k0, h), k);
  load_tile(values(in, k0, h), v);
  float dk[kQk / 8][4] = {}, dv[kV / 8][4] = {};
  for (int64_t q0 = k0; q0 < in.tokens; q0 += kQ) {
    __syncthreads();
    load_tile(queries(in, q0, h), q);
    load_tile(outputs(in, b.a.d_out, q0, h), d_o);
    for (int i = static_cast<int>(threadIdx.x); i < kQ; i += kThreads) {
      const bool here = q0 + i < in.tokens;
      log_sum[i] = here ? b.log_sum[h * in.tokens + q0 + i] : 0;
      delta[i] = here ? b.delta[h * in.tokens + q0 + i] : 0;
    }
    __syncthreads();
    float p[kN][4] = {}, ds[kN][4] = {};
    rows_by_rows<kN>(k, warp * 16, q, p);
    rows_by_rows<kN>(v, warp * 16, d_o, ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + lane % 4 * 2 + e % 2;
        const bool seen = key + e / 2 * 8 <= q0 + i && q0 + i < in.tokens;
        p[n][e] = seen ? exp2f(p[n][e] * (in.softmax_scale * kLog2e) - log_sum[i]) : 0;
        ds[n][e] = in.softmax_scale * p[n][e] * (ds[n][e] - delta[i]);
      }
    }
    by_columns(factor_of<kN, kExact>(p), d_o, dv);
    by_columns(factor_of<kN, kExact>(ds), q, dk);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t s = key + r * 8;
    if (s >= in.tokens) continue;
    float* to = b.a.dkv + (s * in.heads + h) * (in.nope + in.v_dim);
    float* pe = b.dk_pe + (h * in.tokens + s) * in.rope;
#pragma unroll
    for (int n = 0; n < kQk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = n * 8 + lane % 4 * 2 + e;
        if (c < in.nope) {
          to[c] = dk[n][2 * r + e];
        } else if (c < in.nope + in.rope) {
          pe[c - in.nope] = dk[n][2 * r + e];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = n * 8 + lane % 4 * 2 + e;
        if (c < in.v_dim) to[in.nope + c] = dv[n][2 * r + e];
      }
    }
  }
}

template <int kQk, int kV, bool kExact>
__global__ void __launch_bounds__(kThreads) flash_queries(const Backward b) {
  constexpr int kK = kOthers<kQk>, kN = kK / 8;
  extern __shared__ __align__(16) unsigned char space[];
  auto& q = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(space);
  auto& d_o = *reinterpret_cast<Tile<kBlock, kV, kExact>*>(&q + 1);
  auto& k = *reinterpret_cast<Tile<kK, kQk, kExact>*>(&d_o + 1);
  auto& v = *reinterpret_cast<Tile<kK, kV, kExact>*>(&k + 1);
  const Sequence& in = b.a.in;
  const int64_t h = blockIdx.y;
  const int64_t q0 = (int64_t{gridDim.x} - 1 - blockIdx.x) * kBlock;  // long rows first
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = q0 + warp * 16 + lane / 4;
  load_tile(queries(in, q0, h), q);
  load_tile(outputs(in, b.a.d_out, q0, h), d_o);
  float log_sum[2] = {}, delta[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + r * 8 >= in.tokens) continue;
    log_sum[r] = b.log_sum[h * in.tokens + row + r * 8];
    delta[r] = b.delta[h * in.tokens + row + r * 8];
  }
  float dq[kQk / 8][4] = {};
  for (int64_t k0 = 0; k0 < min(q0 + kBlock, in.tokens); k0 += kK) {
    __syncthreads();
    load_tile(keys(in, k0, h), k);
    load_tile(values(in, k0, h), v);
    __syncthreads();
    float p[kN][4] = {}, ds[kN][4] = {};
    rows_by_rows<kN>(q, warp * 16, k, p);
    rows_by_rows<kN>(d_o, warp * 16, v, ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t key = k0 + n * 8 + lane % 4 * 2 + e % 2;
        const bool seen = key <= row + e / 2 * 8 && row + e / 2 * 8 < in.tokens;
        const float x = seen ? exp2f(p[n][e] * (in.softmax_scale * kLog2e) - log_sum[e / 2]) : 0;
        ds[n][e] = in.softmax_scale * x * (ds[n][e] - delta[e / 2]);
      }
    }
    by_columns(factor_of<kN, kExact>(ds), k, dq);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t t = row + r * 8;
    if (t >= in.tokens) continue;
    float* to = b.a.dq + (t * in.heads + h) * (in.nope + in.rope);
#pragma unroll
    for (int n = 0; n < kQk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = n * 8 + lane % 4 * 2 + e;
        if (c < in.nope + in.rope) to[c] = dq[n][2 * r + e];
      }
    }
  }
}

// dk_pe [tokens, rope] = the heads' parts, in order.
__global__ void __launch_bounds__(kThreads) flash_sum_heads(const Backward b) {
  const int64_t n = b.a.in.tokens * b.a.in.rope;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
  for (int64_t h = 0; h < b.a.in.heads; ++h) sum += b.dk_pe[h * n + i];
  b.a.dk_pe[i] = sum;
}

// ---- launches

unsigned blocks_of(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

template <typename... Args>
void start(KernelContext& context, void (*kernel)(Args...), dim3 grid, size_t shared,
           const char* name, Args... args) {
  if (shared > 48 * 1024) {
    allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(shared), name);
  }
  kernel<<<grid, kThreads, shared, stream_of(context)>>>(args...);
  check_launch(name);
}

template <int kQk, int kV, bool kExact>
struct Flash {
  static void forward(KernelContext& context, const Sequence& in, float* out, float* log_sum) {
    const dim3 grid(blocks_of(in.tokens, kBlock), static_cast<unsigned>(in.heads));
    constexpr size_t kShared =
        2 * sizeof(Tile<kBlock, kQk, kExact>) + sizeof(Tile<kBlock, kV, kExact>);
    start(context, flash_forward<kQk, kV, kExact>, grid, kShared, "mla_dense_train (flash)", in,
          out, log_sum);
  }
  static void backward(KernelContext& context, const Backward& b) {
    const Sequence& in = b.a.in;
    const dim3 grid(blocks_of(in.tokens, kBlock), static_cast<unsigned>(in.heads));
    constexpr int kOther = kOthers<kQk>;
    constexpr size_t kShared = sizeof(Tile<kBlock, kQk, kExact>) +
                               sizeof(Tile<kBlock, kV, kExact>) +
                               sizeof(Tile<kOther, kQk, kExact>) +
                               sizeof(Tile<kOther, kV, kExact>) + 2 * kOther * sizeof(float);
    start(context, flash_keys<kQk, kV, kExact>, grid, kShared, "mla_dense_backward (keys)", b);
    start(context, flash_queries<kQk, kV, kExact>, grid, kShared, "mla_dense_backward (queries)",
          b);
  }
};

// Calls run with the Flash of the sequence's dimensions.
template <bool kExact, typename Run>
void with_flash_of(const Sequence& in, const Run& run) {
  const int64_t qk = in.nope + in.rope;
  if (qk <= 48 && in.v_dim <= 32) return run(Flash<48, 32, kExact>());
  if (qk <= 96 && in.v_dim <= 64) return run(Flash<96, 64, kExact>());
  run(Flash<192, 128, kExact>());
}

template <typename Run>
void with_flash(KernelContext& context, const Sequence& in, const Run& run) {
  context.allowed("matmul", "cuda") ? with_flash_of<true>(in, run) : with_flash_of<false>(in, run);
}

float* scratch(KernelContext& context, int slot, int64_t floats) {
  return static_cast<float*>(
      device_scratch(context, slot, floats * static_cast<int64_t>(sizeof(float))));
}

}  // namespace

bool mla_flash_supports(const MlaSequence<float>& in) {
  return in.nope + in.rope <= 192 && in.v_dim <= 128;
}

void mla_dense_train_flash(KernelContext& context, const MlaDenseTrainArgs& a) {
  if (a.in.tokens == 0) return;
  with_flash(context, a.in, [&](auto flash) { flash.forward(context, a.in, a.out, nullptr); });
}

void mla_dense_backward_flash(KernelContext& context, const MlaDenseBackwardArgs<float>& a) {
  const Sequence& in = a.in;
  if (in.tokens == 0) return;
  const int64_t rows = in.tokens * in.heads;
  float* out = scratch(context, kOutSlot, rows * in.v_dim);
  float* log_sum = scratch(context, kRowSlot, 2 * rows);
  float* delta = log_sum + rows;
  const Backward b{a, log_sum, delta, scratch(context, kRopeSlot, rows * in.rope)};
  with_flash(context, in, [&](auto flash) { flash.forward(context, in, out, log_sum); });
  flash_delta<<<blocks_of(rows, kThreads / 32), kThreads, 0, stream_of(context)>>>(a, out, delta);
  check_launch("mla_dense_backward (delta)");
  with_flash(context, in, [&](auto flash) { flash.backward(context, b); });
  if (in.rope == 0) return;
  flash_sum_heads<<<blocks_of(in.tokens * in.rope, kThreads), kThreads, 0, stream_of(context)>>>(b);
  check_launch("mla_dense_backward (heads)");
}

}  // namespace tamis
