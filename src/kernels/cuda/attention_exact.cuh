// One tile of attention in float32, for mla_sparse and mla_dense: 8 query rows x 32 keys, a block
// of 128 threads. A warp owns two query rows, from their scores to their softmax.
//
// Scores: lane (g, d) of a warp multiplies its two rows with keys g, g+8, g+16, g+24 over the
// float4s d, d+4, ..: 8 sums, 6 loads for 32 fused multiply-adds; then lanes d are added, 0+1 and
// 2+3, then both. Rows are padded with zeros to a multiple of 16 floats, and lie 16 floats off a
// multiple of 32 so that eight lanes meet different banks. Softmax: online, lane = key; the sum
// over a tile is the warp's fixed tree.
#pragma once

#include <cstdint>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"

namespace tamis::exact {

constexpr int kRows = 8, kKeys = 32, kThreads = 128, kWarpRows = 2;
constexpr uint32_t kAll = 0xFFFFFFFFu;

constexpr int padded(int width) { return (width + 15) / 16 * 16; }
constexpr int row_floats(int width) {
  return padded(width) % 32 == 0 ? padded(width) + 16 : padded(width);
}

// Shared memory: q [kRows][stride], k [kKeys][stride], p [kKeys][kRows], alpha [kRows].
struct Tile {
  float *q, *k, *p, *alpha;
  int stride, width;  // width: padded
};

constexpr int64_t tile_bytes(int width) {
  return (int64_t{kRows + kKeys} * row_floats(width) + kKeys * kRows + kRows) * 4;
}

__device__ inline Tile make_tile(float* shared, int width) {
  const int stride = row_floats(width);
  float* k = shared + kRows * stride;
  float* p = k + kKeys * stride;
  return {shared, k, p, p + kKeys * kRows, stride, padded(width)};
}

__device__ inline void add_products(const float4& a, const float4& b, float* sum) {
  *sum = fmaf(a.x, b.x, *sum);
  *sum = fmaf(a.y, b.y, *sum);
  *sum = fmaf(a.z, b.z, *sum);
  *sum = fmaf(a.w, b.w, *sum);
}

// Leaves in lane l the products of the warp's rows with key l: score[0], score[1].
__device__ inline void scores(const Tile& tile, float (&score)[kWarpRows]) {
  const int lane = threadIdx.x % 32, g = lane / 4, part = lane % 4;
  const float* q = tile.q + static_cast<int>(threadIdx.x) / 32 * kWarpRows * tile.stride;
  const float* k = tile.k + g * tile.stride;
  float sum[kWarpRows][4] = {};
  for (int d = part * 4; d < tile.width; d += 16) {
    const float4 q0 = *reinterpret_cast<const float4*>(q + d);
    const float4 q1 = *reinterpret_cast<const float4*>(q + tile.stride + d);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 key = *reinterpret_cast<const float4*>(k + 8 * j * tile.stride + d);
      add_products(q0, key, &sum[0][j]);
      add_products(q1, key, &sum[1][j]);
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum[r][j] += __shfl_xor_sync(kAll, sum[r][j], 1);
      sum[r][j] += __shfl_xor_sync(kAll, sum[r][j], 2);
    }
    // Key l = g' + 8 j' is with the lanes 4 g' ..: lane l takes sum j = l / 8 of lane 4 (l % 8).
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float from = __shfl_sync(kAll, sum[r][j], lane % 8 * 4);
      if (lane / 8 == j) score[r] = from;
    }
  }
}

// A row's running softmax, the same in every lane of its warp.
struct Softmax {
  float max = -INFINITY, sum = 0;
};

// Takes lane l's score of key l where `seen`; writes the weights to tile.p and what the sums so far
// must be multiplied by to tile.alpha. A NaN score makes the sum NaN.
__device__ inline void update(const Tile& tile, int row, float score, bool seen, bool round,
                              Softmax* s) {
  const int lane = threadIdx.x % 32;
  float p = 0, alpha = 1;
  if (__ballot_sync(kAll, seen) != 0) {
    float top = seen ? score : -INFINITY;
    for (int offset = 16; offset > 0; offset /= 2) {
      top = fmaxf(top, __shfl_xor_sync(kAll, top, offset));
    }
    const float max = fmaxf(s->max, top);
    alpha = expf(s->max - max);
    p = seen ? expf(score - max) : 0;
    s->max = max;
    s->sum = fmaf(s->sum, alpha, warp_sum(p));
  }
  tile.p[lane * kRows + row] = round ? round_bf16(p) : p;
  if (lane == 0) tile.alpha[row] = alpha;
}

// The running weighted sum of values: row r, columns threadIdx.x + 128 j.
template <int kColumns>
struct Values {
  float sum[kRows][kColumns];
};

template <int kColumns>
__device__ void clear(Values<kColumns>* v) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v->sum[r][j] = 0;
  }
}

// Two parts of one row's list are joined as fold(), left then right.
struct Fold {
  float left, right;  // factors of the parts' sums
};

__device__ inline Fold fold(const Softmax& left, const Softmax& right, Softmax* out) {
  const float max = fmaxf(left.max, right.max);
  const Fold f{expf(left.max - max), expf(right.max - max)};
  *out = {max, fmaf(left.sum, f.left, right.sum * f.right)};
  return f;
}

}  // namespace tamis::exact
