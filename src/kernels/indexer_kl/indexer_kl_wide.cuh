// indexer_kl_flash.cu: the mean probabilities and the index scores of two query tiles by two key
// tiles at once, with factors in bf16. A block has up to 128 queries by 128 keys, a warp 32 by 64:
// half as many bytes come from L2, and from shared memory, for a product.
#pragma once

#include "kernels/indexer_kl/indexer_kl_tiles.cuh"

namespace tamis::flash {

constexpr int kWide = 2 * kBlock, kWideThreads = 2 * kThreads;

template <int kCols>
using WideTile = Tile<kWide, kCols, false>;

// copy_tile by kWideThreads.
template <int kCols>
__device__ inline void copy_wide(const __nv_bfloat16* x, int64_t row, int64_t there,
                                 WideTile<kCols>& to) {
  constexpr int kPieces = kCols / 8;
  static_assert(kWide * kPieces % kWideThreads == 0);
#pragma unroll
  for (int i = 0; i < kWide * kPieces / kWideThreads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kWideThreads, r = at / kPieces;
    const int col = at % kPieces * 8;
    const bool here = r < there;
    ptx::cp_async_16(to.values + r * WideTile<kCols>::kRow + col,
                     here ? x + (row + r) * kCols + col : x, here);
  }
}

// s[32 rows of a from `row`, 64 of b from `b_row`] += a b^T.
template <int kCols>
__device__ inline void multiply_wide(const WideTile<kCols>& a, int row, const WideTile<kCols>& b,
                                     int b_row, float (&s)[2][kN][4]) {
  constexpr int kRow = WideTile<kCols>::kRow;
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
#pragma unroll
  for (int k = 0; k < kCols; k += 16) {
    uint32_t left[2][4];
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      ptx::ldmatrix_x4(left[g], a.values + (row + g * 16 + j % 2 * 8 + i) * kRow + k + j / 2 * 8);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t right[4];
      ptx::ldmatrix_x4(right, b.values + (b_row + n * 8 + j / 2 * 8 + i) * kRow + k + j % 2 * 8);
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        mma_bf16(s[g][n], left[g], right[0], right[1]);
        mma_bf16(s[g][n + 1], left[g], right[2], right[3]);
      }
    }
  }
}

// Up to four pairs of tiles: an even key tile and the next one, and an even query tile and the next
// one, as far as the group has them. The block of the first pair does all of them.
struct Quad {
  Rows rows[2];  // the second is there if `two`
  int key_tile;
  bool two, first;

  __device__ Quad(const Lists& lists, int blocks) {
    const Pair own = lists.pairs[blockIdx.x];
    rows[0] = rows_of(lists, own.block);
    key_tile = own.key_tile;
    const auto neighbour = [&](int block, int tile) {
      if (block < 0 || block >= blocks) return false;
      const QueryTile q = lists.queries[block];  // later tiles of a sequence come first
      return q.begin == rows[0].begin && q.tile == tile;
    };
    const bool odd = rows[0].tile % 2 != 0;
    first = key_tile % 2 == 0 && !(odd && neighbour(own.block + 1, rows[0].tile - 1));
    two = first && !odd && neighbour(own.block - 1, rows[0].tile + 1);
    rows[1] = two ? rows_of(lists, own.block - 1) : rows[0];
  }
  // Whether pair (i, j) is one that somebody attends to.
  __device__ bool has(const Problem& b, int i, int j) const {
    return (i == 0 || two) && key_tile + j <= rows[i].tile && attends(b, rows[i], key_tile + j);
  }
  __device__ bool any(const Problem& b) const {
    return has(b, 0, 0) || has(b, 0, 1) || has(b, 1, 0) || has(b, 1, 1);
  }
  __device__ int64_t queries() const {
    return min(int64_t{two ? kWide : kBlock}, rows[0].left(rows[0].tile));
  }
};

// Rows and keys of a thread in its block: `g` 16 rows, value [n][e] of them as Values has it.
struct OwnWide {
  int row, key;  // of the warp

  __device__ OwnWide()
      : row(static_cast<int>(threadIdx.x) / 64 * 32),
        key(static_cast<int>(threadIdx.x) / 32 % 2 * kBlock) {}
  __device__ int row_of(int g, int i) const {
    return row + g * 16 + i * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  // Stores the values of the rows of g that somebody sees, `hidden` in the place of the others.
  template <typename Value>
  __device__ void store(const Problem& b, const Quad& quad, int g, float* tiles, float hidden,
                        const Value& value) const {
    const int i = row / kBlock, j = key / kBlock, lane = static_cast<int>(threadIdx.x) % 32;
    if (!quad.has(b, i, j)) return;
    const Rows& r = quad.rows[i];
    const int in_tile = row % kBlock + g * 16;
    float* to = tiles + (r.pair + quad.key_tile + j) * kValues + in_tile / 16 * 32 + lane;
    uint64_t seen[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int query = r.tile * kBlock + in_tile + e * 8 + lane / 4;
      seen[e] = seen_keys(b.mask, r.begin, query, query < r.tokens, (quad.key_tile + j) * kBlock) >>
                (lane % 4 * 2);
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool there = (seen[e / 2] >> (n * 8 + e % 2) & 1) != 0;
        to[(n * 4 + e) * kThreads] = there ? value(n, e) : hidden;
      }
    }
  }
};

template <int kQk>
__global__ void __launch_bounds__(kWideThreads)
    kl_wide_probabilities(const Problem b, const Lists lists, int blocks) {
  struct Step {
    WideTile<kQk> q, k;
  };
  extern __shared__ __align__(16) unsigned char space[];
  auto* steps = reinterpret_cast<Step*>(space);
  const Quad quad(lists, blocks);
  if (!quad.first || !quad.any(b)) return;
  const Rows& r = quad.rows[0];
  const OwnWide own;
  const int64_t all = b.attention.tokens, q0 = r.token(r.tile * kBlock);
  const int64_t k0 = r.token(quad.key_tile * kBlock), end = r.token(r.tokens);
  const float scale = b.attention.softmax_scale * kLog2e;
  float mean[2][kN][4] = {};
  const auto start = [&](int h, int step) {
    copy_wide<kQk>(b.q, h * all + q0, quad.queries(), steps[step].q);
    copy_wide<kQk>(b.k, h * all + k0, end - k0, steps[step].k);
  };
  const auto multiply = [&](int h, int step) {
    float log_sum[2][2], s[2][kN][4] = {};
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t row = q0 + own.row_of(g, i);
        log_sum[g][i] = row < end ? b.log_sum[h * all + row] : 0;
      }
    }
    multiply_wide<kQk>(steps[step].q, own.row, steps[step].k, own.key, s);
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          mean[g][n][e] += ptx::ex2(fmaf(s[g][n][e], scale, -log_sum[g][e / 2]));
        }
      }
    }
  };
  pipeline<2>(0, static_cast<int>(b.attention.heads), 1, itself, start, multiply);
  const float heads = 1 / static_cast<float>(b.attention.heads);
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    own.store(b, quad, g, b.p, 0, [&](int n, int e) { return mean[g][n][e] * heads; });
  }
}

template <int kDim>
__global__ void __launch_bounds__(kWideThreads)
    kl_wide_scores(const Problem b, const Lists lists, int blocks) {
  extern __shared__ __align__(16) unsigned char space[];
  auto& k = *reinterpret_cast<WideTile<kDim>*>(space);
  auto* q = &k + 1;
  const Quad quad(lists, blocks);
  if (!quad.first || !quad.any(b)) return;
  const Rows& r = quad.rows[0];
  const OwnWide own;
  const int64_t all = b.x.tokens, heads = b.x.heads, q0 = r.token(r.tile * kBlock);
  const int64_t k0 = r.token(quad.key_tile * kBlock), end = r.token(r.tokens);
  copy_wide<kDim>(b.index_k, k0, end - k0, k);
  float score[2][kN][4] = {};
  const auto start = [&](int h, int step) {
    copy_wide<kDim>(b.index_q, h * all + q0, quad.queries(), q[step]);
  };
  const auto multiply = [&](int h, int step) {
    float w[2][2], s[2][kN][4] = {};
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t row = q0 + own.row_of(g, i);
        w[g][i] = row < end ? b.x.w[row * heads + h] : 0;
      }
    }
    multiply_wide<kDim>(q[step], own.row, k, own.key, s);
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[g][n][e] = fmaf(w[g][e / 2], fmaxf(s[g][n][e], 0), score[g][n][e]);
        }
      }
    }
  };
  pipeline<2>(0, static_cast<int>(heads), 1, itself, start, multiply);
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    own.store(b, quad, g, b.score, -INFINITY, [&](int n, int e) { return score[g][n][e]; });
  }
}

}  // namespace tamis::flash
