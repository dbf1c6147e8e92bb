// What the kernels of indexer_kl_flash.cu work on: the lists of a group's tiles, and the values of
// a pair of tiles as its threads have them.
#pragma once

#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/mla_dense/flash_tiles.cuh"
#include "kernels/mla_dense/mla_dense_backward_impl.h"

namespace tamis::flash {

constexpr int kValues = kBlock * kBlock;  // of a tile, kEach a thread, value e of thread i at
constexpr int kEach = kValues / kThreads, kN = kBlock / 8;  // e * kThreads + i

// What the blocks of a group work on, listed in the device's memory: long rows first.
struct QueryTile {
  int32_t begin, tokens;  // of the sequence
  int32_t tile, pair;     // pair: that with key tile 0; those of the next key tiles follow
};
struct Pair {
  int32_t block, key_tile;  // block: of the query tile
};
struct KeyTile {
  int32_t begin, tokens, key_tile;
  int32_t tile, end, pair;  // the group's query tiles [tile, end); pair: of `tile` and key tile 0
};
struct Lists {
  QueryTile* queries;
  Pair* pairs;
  KeyTile* keys;
};

struct Problem {
  IndexerSequence<float> x;
  Sequence attention;
  const float* log_sum;  // [heads, tokens]
  // Not for kExact: bf16 [heads, tokens, columns].
  const __nv_bfloat16 *q, *k, *index_q, *index_k;
  float *p, *score;  // [pairs] tiles
  SelectionMask mask;
  float* dk_parts = nullptr;  // [parts of the heads][tokens, dim], if there are several
};

// A tile of a block's sequence.
struct Rows {
  int begin, tokens, tile;
  int64_t pair;  // of a query tile and key tile 0

  __device__ int64_t token(int64_t row) const { return begin + row; }
  __device__ int64_t left(int t) const { return tokens - int64_t{t} * kBlock; }
};

__device__ inline Rows rows_of(const Lists& lists, int block) {
  const QueryTile q = lists.queries[block];
  return {q.begin, q.tokens, q.tile, q.pair};
}

// Values of a warp's 16 rows: n 8 * 8 columns, e as mma_bf16 has d.
using Values = float[kN][4];

__device__ inline float* at_tile(float* tiles, int64_t pair) {
  return tiles + pair * kValues + threadIdx.x;
}
__device__ inline int row_in_tile(int e) {
  return static_cast<int>(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) + e / 2 * 8;
}
__device__ inline int column_in_tile(int n, int e) {
  return n * 8 + static_cast<int>(threadIdx.x % 4) * 2 + e % 2;
}

// Whether the queries of a block attend to a tile of keys, and the first at or after it that they
// attend to.
__device__ inline bool attends(const Problem& b, const Rows& r, int key_tile) {
  return b.mask.has_tile(r.token(r.tile * kBlock), key_tile);
}
__device__ inline int next_of(const Problem& b, const Rows& r, int key_tile) {
  return next_tile(b.mask, r.token(r.tile * kBlock), key_tile, r.tile + 1);
}

// Of the thread's two rows of a pair of tiles: bit n * 8 + e % 2 for value [n][e].
struct Seen {
  uint64_t keys[2];

  __device__ Seen(const Problem& b, const Rows& r, int key_tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = r.tile * kBlock + row_in_tile(2 * i);
      keys[i] = seen_keys(b.mask, r.begin, row, row < r.tokens, key_tile * kBlock) >>
                column_in_tile(0, 0);
    }
  }
  __device__ bool operator()(int n, int e) const {
    return (keys[e / 2] >> (n * 8 + e % 2) & 1) != 0;
  }
};

// Every tile of `step` counts.
__device__ inline int itself(int x) { return x; }

}  // namespace tamis::flash
