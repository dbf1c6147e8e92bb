// Which tiles a launch of tile.cuh has, and which of them a cluster works on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/linear/sm90/config.cuh"

namespace tamis::sm90 {

// A product as its tiles need it.
struct Product {
  const uint16_t* x;      // its first atom
  const float* x_scales;  // of its first row, in the first block of columns
  int64_t x_rows;         // from one block of columns to the next
  int64_t m, steps;       // steps of 64 columns
  Weight w;
  float* y;
  int64_t y_stride;
};

__device__ inline Product product(const NativeProducts& all, int i) {
  const NativeProduct& p = all.list[all.offsets == nullptr ? i : 0];
  Product out{p.x,
              p.x_scales,
              atom_rows(p.m, all.offsets == nullptr ? 0 : all.count),
              p.m,
              p.x_stride / kColumns,
              p.w,
              p.y,
              p.y_stride};
  if (all.offsets == nullptr) return out;
  const int64_t first = all.offsets[i], begin = first_atom_row(first, i);
  out.x += begin * kColumns;
  out.x_scales += begin;
  out.m = all.offsets[i + 1] - first;
  out.w = all.weights[i];
  out.y += first * p.y_stride;
  return out;
}

__device__ inline int64_t rows_of(const NativeProducts& all, int i) {
  return all.offsets == nullptr ? all.list[i].w.rows : all.weights[i].rows;
}
__device__ inline int64_t m_of(const NativeProducts& all, int i) {
  return all.offsets == nullptr ? all.list[i].m : all.offsets[i + 1] - all.offsets[i];
}

// first[i] = tiles of the products before i, for the whole block.
__device__ inline void number_tiles(const NativeProducts& all, int x_rows, int* first) {
  for (int i = static_cast<int>(threadIdx.x); i < all.count; i += kThreads) {
    const int64_t down = (rows_of(all, i) + kRows * kCluster - 1) / (kRows * kCluster);
    first[i + 1] = static_cast<int>(down * ((m_of(all, i) + x_rows - 1) / x_rows));
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    int before = 0;
    for (int base = 0; base < all.count; base += 32) {
      int n = base + lane < all.count ? first[base + lane + 1] : 0;
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFFu, n, d);
        if (lane >= d) n += other;
      }
      if (base + lane < all.count) first[base + lane + 1] = before + n;
      before += __shfl_sync(0xFFFFFFFFu, n, 31);
    }
    if (lane == 0) first[0] = 0;
  }
  __syncthreads();
}

struct Place {
  int product;
  int64_t r0, m0;  // first row of W of this block, first row of x
};

// Tile `tile` of the launch. Clusters that run together share rows of x and of W: eight tiles of
// x by one of W, then the next of W. Tiles with fewer rows of x come last, so that no cluster has a
// whole one more than it must.
__device__ inline Place place_of(const NativeProducts& all, int x_rows, const int* first, int tile,
                                 int rank) {
  int low = 0, high = all.count;  // first[low] <= tile < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first[middle] <= tile ? low : high) = middle;
  }
  constexpr int kSide = 8;
  const auto m = static_cast<int>(m_of(all, low));
  const int across = (m + x_rows - 1) / x_rows, whole = m / x_rows;
  const int down = (first[low + 1] - first[low]) / across, n = tile - first[low];
  int r = n - whole * down, x = whole;
  if (r < 0) {
    const int band = n / (kSide * down), in_band = n % (kSide * down);
    const int side = min(kSide, whole - band * kSide);
    r = in_band / side;
    x = band * kSide + in_band % side;
  }
  return {low, (int64_t{r} * kCluster + rank) * kRows, int64_t{x} * x_rows};
}

// Time of a tile in rows of x, fitted to measurements: what a stage costs besides is that of 150.
inline int64_t tile_cost(int64_t rows) { return rows + 150; }

// How many rows of x a tile has at most: as many as finish first, when `clusters` take tiles in
// turn. Groups' rows are not known on the host.
inline int choose_x_rows(const NativeProducts& p, int clusters) {
  if (p.offsets != nullptr) return kXRows;
  int best = kXRows;
  int64_t best_cost = std::numeric_limits<int64_t>::max();
  for (const int x : {192, 176, 160, 128, 64}) {
    int64_t whole = 0, rest = 0, rest_rows = 0;
    for (int i = 0; i < p.count; ++i) {
      const NativeProduct& one = p.list[i];
      const int64_t down = (one.w.rows + kRows * kCluster - 1) / (kRows * kCluster);
      whole += down * (one.m / x);
      if (one.m % x == 0) continue;
      rest += down;
      rest_rows = std::max(rest_rows, one.m % x);
    }
    const int64_t last = whole % clusters, rounds = (last + rest) / clusters;
    int64_t cost = whole / clusters * tile_cost(x) + rounds * tile_cost(rest_rows);
    if (last > 0) {
      cost += tile_cost(x);
    } else if (rest % clusters > 0) {
      cost += tile_cost(rest_rows);
    }
    if (cost < best_cost) {
      best = x;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace tamis::sm90
