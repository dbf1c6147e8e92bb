// Tiles of bf16 values in shared memory and what a warp multiplies of them, for products of float32
// factors taken apart into kParts bf16 values: with two, a product is high high + high low + low
// high, off by at most 3.01 * 2^-18 of it; with one, both factors are rounded to bf16.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"

namespace tamis::split_tiles {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr float kLog2e = 1.4426950408889634F;

// Whether products have two parts.
inline bool exact(KernelContext& context) {
  return context.allowed("matmul", "cuda") && context.allowed("train_products", "cuda");
}

__host__ __device__ inline int padded(int64_t n) { return static_cast<int>((n + 15) / 16 * 16); }

__device__ inline float low_part(float x) {
  const uint32_t bits = ptx::pack_bf16(x, 0);
  return x - __uint_as_float(bits << 16);
}
__device__ inline uint16_t bf16_of(float x) {
  return static_cast<uint16_t>(ptx::pack_bf16(x, 0) & 0xFFFFu);
}

// Entries of a row of indices before the first -1.
__device__ inline int entries(const int32_t* set, int64_t k) {
  int low = 0, high = static_cast<int>(k);  // the first -1
  while (low < high) {
    const int mid = (low + high) / 2;
    if (set[mid] >= 0) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

// Rows of `pitch` bf16 values; the low parts lie `part` values after the high ones.
struct Tile {
  uint16_t* x;
  int pitch, part;
};

// Shared memory of a block, cut into tiles.
struct Space {
  unsigned char* at;
  __device__ Tile tile(int rows, int width, int parts) {
    const int pitch = width + 8, part = rows * pitch;
    Tile t{reinterpret_cast<uint16_t*>(at), pitch, part};
    at += parts * part * 2;
    return t;
  }
  __device__ float* floats(int n) {
    auto* x = reinterpret_cast<float*>(at);
    at += (n + 3) / 4 * 16;
    return x;
  }
};

__host__ __device__ constexpr int tile_bytes(int rows, int width, int parts) {
  return parts * rows * (width + 8) * 2;
}

template <int kParts>
__device__ inline void put(const Tile& t, int row, int col, float x) {
  uint16_t* to = t.x + row * t.pitch + col;
  to[0] = bf16_of(x);
  if (kParts == 2) to[t.part] = bf16_of(low_part(x));
}

template <int kParts>
struct Factor {
  uint32_t part[kParts][4];
};

// 16 rows by 16 columns as a left factor.
template <int kParts>
__device__ inline Factor<kParts> left(const Tile& t, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Factor<kParts> f;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    ptx::ldmatrix_x4(f.part[p],
                     t.x + p * t.part + (row + lane % 16) * t.pitch + col + lane / 16 * 8);
  }
  return f;
}
// The same of the tile transposed: 16 columns of it are the factor's rows.
template <int kParts>
__device__ inline Factor<kParts> left_trans(const Tile& t, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Factor<kParts> f;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    ptx::ldmatrix_x4_trans(
        f.part[p],
        t.x + p * t.part + (row + lane % 8 + lane / 16 * 8) * t.pitch + col + lane / 8 % 2 * 8);
  }
  return f;
}
// 16 rows by 16 columns as two right factors, rows summed over.
template <int kParts>
__device__ inline Factor<kParts> right(const Tile& t, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Factor<kParts> f;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    ptx::ldmatrix_x4_trans(f.part[p],
                           t.x + p * t.part + (row + lane % 16) * t.pitch + col + lane / 16 * 8);
  }
  return f;
}

// 16 rows by 16 columns as two right factors, columns summed over.
template <int kParts>
__device__ inline Factor<kParts> right_rows(const Tile& t, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Factor<kParts> f;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    ptx::ldmatrix_x4(f.part[p], t.x + p * t.part + (row + lane % 8 + lane / 16 * 8) * t.pitch +
                                    col + lane / 8 % 2 * 8);
  }
  return f;
}

// d[2] += a b for both halves of b.
template <int kParts>
__device__ inline void multiply(float (&d)[2][4], const Factor<kParts>& a,
                                const Factor<kParts>& b) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if constexpr (kParts == 2) {
      mma_bf16(d[h], a.part[1], b.part[0][2 * h], b.part[0][2 * h + 1]);
      mma_bf16(d[h], a.part[0], b.part[1][2 * h], b.part[1][2 * h + 1]);
    }
    mma_bf16(d[h], a.part[0], b.part[0][2 * h], b.part[0][2 * h + 1]);
  }
}

// ---- the rows of one token, for up to kHeads heads

constexpr int kHeads = 16, kTile = 32;

// Where a token's rows come from: packed rows [tokens][parts][width], k entries of a set.
struct Gathered {
  const uint16_t* rows = nullptr;
  int64_t k = 0;
  int width = 0;
  int stages = 1;  // tiles of rows in shared memory, 1 or 2
};

// The token's heads: columns [0, n) from x, rows `stride` apart; then zeros up to `end`.
template <int kParts>
__device__ void load_heads(const Tile& t, int col0, const float* x, int64_t stride, int64_t heads,
                           int64_t n, int end) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int h = warp; h < kHeads; h += kWarps) {
    for (int c = lane; c < end; c += 32) {
      put<kParts>(t, h, col0 + c, h < heads && c < n ? x[h * stride + c] : 0.0f);
    }
  }
}

// Starts to copy the rows of entries [base, base + kTile) of the token's set to a tile.
template <int kParts>
__device__ void gather(const Gathered& g, const int32_t* set, int base, const Tile& to) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = g.width / 8;
#pragma unroll
  for (int r = warp; r < kTile; r += kWarps) {
    const int64_t row = base + r < g.k ? set[base + r] : -1;
    const uint16_t* from = g.rows + max(row, int64_t{0}) * kParts * g.width;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      for (int c = lane; c < pieces; c += 32) {
        ptx::cp_async_16(to.x + part * to.part + r * to.pitch + c * 8,
                         from + part * g.width + c * 8, row >= 0);
      }
    }
  }
  ptx::cp_async_commit();
}

// s = heads by 8 rows of a gathered tile, over columns [begin, end). The sum has six parts, so that
// no product waits for the one before it.
template <int kParts>
__device__ void scores(const Tile& heads, const Tile& rows, int row, int begin, int end,
                       float (&s)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum[2][2 * kParts - 1][4] = {};
  const auto step = [&](float(&d)[2 * kParts - 1][4], const Factor<kParts>& a,
                        const uint32_t(&b)[kParts][4], int h) {
    mma_bf16(d[0], a.part[0], b[0][2 * h], b[0][2 * h + 1]);
    if constexpr (kParts == 2) {
      mma_bf16(d[1], a.part[0], b[1][2 * h], b[1][2 * h + 1]);
      mma_bf16(d[2], a.part[1], b[0][2 * h], b[0][2 * h + 1]);
    }
  };
#pragma unroll 2
  for (int c = begin; c < end; c += 32) {
    uint32_t b[kParts][4];
    // The last step may have 16 columns alone: what is past them can be on its way to another tile.
    const int col = c + (c + 16 < end ? lane / 8 : lane / 8 % 2) * 8;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      ptx::ldmatrix_x4(b[p], rows.x + p * rows.part + (row + lane % 8) * rows.pitch + col);
    }
    step(sum[0], left<kParts>(heads, 0, c), b, 0);
    if (c + 16 < end) step(sum[1], left<kParts>(heads, 0, c + 16), b, 1);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    s[e] = sum[0][0][e] + sum[1][0][e];
    if constexpr (kParts == 2) {
      s[e] += (sum[0][1][e] + sum[1][1][e]) + (sum[0][2][e] + sum[1][2][e]);
    }
  }
}

// Calls use(base, tile) with the gathered rows of every tile in turn. A block's barrier stands
// before each call; the one before the next gather into the tile stands after it.
template <int kParts, typename Use>
__device__ void over_tiles(const Gathered& g, const int32_t* set, int n, const Tile (&tiles)[2],
                           const Use& use) {
  const int count = (n + kTile - 1) / kTile;
  gather<kParts>(g, set, 0, tiles[0]);
  for (int i = 0; i < count; ++i) {
    const bool ahead = g.stages == 2 && i + 1 < count;
    if (ahead) gather<kParts>(g, set, (i + 1) * kTile, tiles[(i + 1) % 2]);
    ahead ? ptx::cp_async_wait<1>() : ptx::cp_async_wait<0>();
    __syncthreads();
    use(i * kTile, tiles[g.stages == 2 ? i % 2 : 0]);
    __syncthreads();
    if (g.stages == 1 && i + 1 < count) gather<kParts>(g, set, (i + 1) * kTile, tiles[0]);
  }
}

}  // namespace tamis::split_tiles
