// Tiles of bf16 values in shared memory and what a warp multiplies of them, for products of float32
// factors taken apart into kParts bf16 values: with two, a product is high high + high low + low
// high, off by at most 3.01 * 2^-18 of it; with one, both factors are rounded to bf16.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"

namespace tamis::split_tiles {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostShared = 227 * 1024;
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

}  // namespace tamis::split_tiles
