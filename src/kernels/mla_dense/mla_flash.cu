// mla_dense in training on CUDA without scores in memory: tiles of 64 queries by 64 keys on the
// tensor cores, the softmax of a row kept running (FlashAttention, arXiv 2205.14135 and
// 2307.08691). The sequences of a batch share a launch, whose tiles a small kernel lists in the
// device's memory.
//
// Every float32 factor is taken apart into two bf16 values and a product is high high + high low +
// low high, off by at most 3.01 * 2^-18 of it. With `matmul` forced to cuda_bf16 it is high high
// alone: q, keys, v and d_out are rounded once, to rows of a head side by side, and come to shared
// memory by asynchronous copies while the tile before them is multiplied. Sums in float32.
//
// Backward: the forward pass again for the rows' log sums and outputs unless they are given, then
// one kernel whose blocks own 64 keys and walk over the queries that see them (dk, dv), and one
// whose blocks own 64 queries (dq). No atomics: dk_pe is a sum over heads, in order, of each head's
// part. Bound by the tensor cores and the exponentials.
//
// Arrays that are rounded already (mla_bf16.h) are read where they are, and what is written is
// rounded, and turned by RoPE, on the way.
//
// With a mask (kernels/selection_mask.h) a tile of keys that no query of a tile attends to is not
// read. Without one the bits are those of the positions.
#include <algorithm>
#include <vector>

#include "kernels/mla_dense/flash_rows.cuh"
#include "kernels/mla_dense/mla_bf16_impl.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/rope/rope_pair.cuh"

namespace tamis {
namespace flash {
namespace {

constexpr int kOutSlot = 2, kRowSlot = 3, kRopeSlot = 4, kPackSlot = 5;  // of device_scratch
constexpr int kListSlot = 7;

// A tile of kBlock tokens of a sequence, a block's in each kernel.
struct BlockTile {
  int32_t begin, tokens, tile;  // of the sequence; the tile's number in it
};
// Those of all sequences, the longest sequence first, in the device's memory.
struct Tiles {
  BlockTile* list;
  int count;
};

// Sequences whose tiles are listed from `block` on.
struct Runs {
  static constexpr int kMost = 512;
  struct Run {
    int32_t begin, tokens, block;
  } list[kMost];
};

__global__ void __launch_bounds__(kThreads)
    flash_list(const __grid_constant__ Runs runs, const Tiles tiles) {
  const Runs::Run r = runs.list[blockIdx.x];
  const int count = (r.tokens + kBlock - 1) / kBlock;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    tiles.list[r.block + i] = {r.begin, r.tokens, i};
  }
}

// A block's sequence: `in` is its part of the batch, token 0 of it is token `first` of the batch.
struct Place {
  Sequence in;
  int64_t first;
  int block, blocks;  // this one of the sequence's
};

__device__ inline Place place_of(const Sequence& all, const Tiles& tiles) {
  const BlockTile t = tiles.list[blockIdx.x];
  return {mla_sequence_at(all, t.begin, t.tokens), t.begin, t.tile,
          (t.tokens + kBlock - 1) / kBlock};
}

// q, keys, v and d_out; not for kExact.
struct Packed {
  HeadRows q, k, v, d_o;
};

// Where a kernel puts values [.., heads, columns]: float32, or rounded.
struct Put {
  float* f32;
  uint16_t* bf16;  // null: f32
};

// Rows of a head of a block's sequence, from float32 or packed.
template <int kQk, int kV, bool kExact>
struct Rows {
  const Sequence& in;
  const float* d_out;  // of the sequence
  const Packed& packed;
  int64_t h, token0;  // the sequence's token 0 in the batch

  template <int kRows>
  __device__ void q(int64_t first, Tile<kRows, kQk, kExact>& to) const {
    if constexpr (kExact) {
      load_tile(queries(in, first, h), to);
    } else {
      copy_rows(packed.q, h, token0 + first, left(in, first), to);
    }
  }
  template <int kRows>
  __device__ void k(int64_t first, Tile<kRows, kQk, kExact>& to) const {
    if constexpr (kExact) {
      load_tile(keys(in, first, h), to);
    } else {
      copy_rows(packed.k, h, token0 + first, left(in, first), to);
    }
  }
  template <int kRows>
  __device__ void v(int64_t first, Tile<kRows, kV, kExact>& to) const {
    if constexpr (kExact) {
      load_tile(values(in, first, h), to);
    } else {
      copy_rows(packed.v, h, token0 + first, left(in, first), to);
    }
  }
  template <int kRows>
  __device__ void d_o(int64_t first, Tile<kRows, kV, kExact>& to) const {
    if constexpr (kExact) {
      load_tile(outputs(in, d_out, first, h), to);
    } else {
      copy_rows(packed.d_o, h, token0 + first, left(in, first), to);
    }
  }
};

// ---- forward

// out as in mla_dense; log_sum [heads, tokens] or null: of the row's exponentials, base 2.
template <int kQk, int kV, bool kExact>
__global__ void __launch_bounds__(kThreads)
    flash_forward(const Sequence all, const Tiles tiles, const __grid_constant__ Packed packed,
                  const SelectionMask mask, const Put out, float* log_sum) {
  constexpr int kN = kBlock / 8;
  extern __shared__ __align__(16) unsigned char space[];
  auto& q = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(space);
  auto& k = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(&q + 1);
  auto& v = *reinterpret_cast<Tile<kBlock, kV, kExact>*>(&k + 1);
  const Place place = place_of(all, tiles);
  const Sequence& in = place.in;
  const int64_t h = blockIdx.y;
  const Rows<kQk, kV, kExact> rows{in, nullptr, packed, h, place.first};
  const int q0 = (place.blocks - 1 - place.block) * kBlock;  // long rows first
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row = q0 + warp * 16 + lane / 4;
  const float scale = in.softmax_scale * kLog2e;
  const auto next = [&](int key) {
    return next_tile(mask, place.first + q0, key / kBlock, q0 / kBlock + 1) * kBlock;
  };
  rows.q(q0, q);
  int k0 = next(0);
  if (k0 <= q0) rows.k(k0, k);
  float o[kV / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  while (k0 <= q0) {
    const int after = next(k0 + kBlock);
    uint64_t seen[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      seen[r] = seen_keys(mask, place.first, row + r * 8, row + r * 8 < in.tokens, k0);
      seen[r] >>= lane % 4 * 2;
    }
    arrive();
    rows.v(k0, v);
    float s[kN][4] = {};
    rows_by_rows<kN>(q, warp * 16, k, s);
    arrive();
    if (after <= q0) rows.k(after, k);
    k0 = after;
    float most[2] = {top[0], top[1]}, base[2];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool own = (seen[e / 2] >> (n * 8 + e % 2) & 1) != 0;
        s[n][e] = own ? s[n][e] * scale : -INFINITY;
        most[e / 2] = fmaxf(most[e / 2], s[n][e]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 2));
      // A row that has met no key yet: its terms are 0, not exp(-inf + inf).
      base[r] = most[r] == -INFINITY ? 0 : most[r];
      const float keep = power<kExact>(top[r] - base[r]);
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
        tile[e] = power<kExact>(tile[e] - base[e / 2]);
        sum[e / 2] += tile[e];
      }
    }
    by_columns(factor_of<kN, kExact>(s), v, o);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 2);
    const int64_t t = row + r * 8, at = ((place.first + t) * in.heads + h) * in.v_dim;
    if (!kExact && out.bf16 != nullptr) {
      write_rounded(o, r, t < in.tokens, out.bf16 + at, in.v_dim, [&](int, float& x, float& y) {
        x = x / sum[r];
        y = y / sum[r];
      });
    }
    if (t >= in.tokens) continue;
    if (kExact || out.bf16 == nullptr) {
#pragma unroll
      for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = n * 8 + lane % 4 * 2 + e;
          if (c < in.v_dim) out.f32[at + c] = o[n][2 * r + e] / sum[r];
        }
      }
    }
    if (log_sum != nullptr && lane % 4 == 0) {
      log_sum[h * all.tokens + place.first + t] = top[r] + log2f(sum[r]);
    }
  }
}

// ---- backward

// delta[h, t] = d_out[t, h] . out[t, h]: `lanes` threads a row, a power of two, eight columns each.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    flash_delta(const Sequence in, const T* d_out, const T* out, int lanes, float* delta) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, row = i / lanes;
  const bool there = row < in.tokens * in.heads;
  float x[8] = {}, y[8] = {}, sum = 0;
  if (there) {
    read_eight(d_out + row * in.v_dim, i % lanes * 8, in.v_dim, x);
    read_eight(out + row * in.v_dim, i % lanes * 8, in.v_dim, y);
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) sum = fmaf(x[e], y[e], sum);
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, static_cast<unsigned>(offset));
  }
  if (there && i % lanes == 0) delta[row % in.heads * in.tokens + row / in.heads] = sum;
}

template <typename T>
void start_delta(KernelContext& context, const Sequence& in, const T* d_out, const T* out,
                 float* delta) {
  int lanes = 1;  // at most 16, of 128 columns
  while (lanes * 8 < in.v_dim) lanes *= 2;
  const unsigned blocks = blocks_of(in.tokens * in.heads * lanes, kThreads);
  flash_delta<T><<<blocks, kThreads, 0, stream_of(context)>>>(in, d_out, out, lanes, delta);
  check_launch("mla_dense_backward (delta)");
}

struct Backward {
  MlaDenseBackwardArgs<float> a;
  const float* log_sum;  // [heads, tokens]
  const float* delta;    // [heads, tokens]
  float* dk_pe;          // [heads, tokens, rope]
  Packed packed;
  // Instead of a.dq and a.dkv, or null; dq turned back by these angles.
  uint16_t *dq, *dkv;
  const float *cos, *sin;  // [tokens, rope / 2]
};

// Queries that a block of keys reads at a time, and keys of a block of queries: fewer where the
// rows are long.
template <int kQk>
constexpr int kOthers = kQk > 96 ? 32 : 64;
// Tiles of queries that a block of keys walks over, or of keys.
template <int kQk, int kV, bool kExact>
struct Stage {
  static constexpr int kRows = kOthers<kQk>;
  Tile<kRows, kQk, kExact> qk;
  Tile<kRows, kV, kExact> v;
  float log_sum[kRows], delta[kRows];
  uint32_t seen[2][kRows];  // queries: halves of the keys that each attends to
};

template <int kQk, int kV, bool kExact>
__global__ void __launch_bounds__(kThreads)
    flash_keys(const __grid_constant__ Backward b, const Tiles tiles) {
  using Others = Stage<kQk, kV, kExact>;
  constexpr int kQ = Others::kRows, kN = kQ / 8;
  extern __shared__ __align__(16) unsigned char space[];
  auto& k = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(space);
  auto& v = *reinterpret_cast<Tile<kBlock, kV, kExact>*>(&k + 1);
  auto* others = reinterpret_cast<Others*>(&v + 1);
  const Place place = place_of(b.a.in, tiles);
  const Sequence& in = place.in;
  const int64_t h = blockIdx.y, row0 = h * b.a.in.tokens + place.first;
  const Rows<kQk, kV, kExact> rows{in, b.a.d_out + place.first * in.heads * in.v_dim, b.packed, h,
                                   place.first};
  const int k0 = place.block * kBlock;  // those seen by most first
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int key = k0 + warp * 16 + lane / 4;
  const float scale = in.softmax_scale * kLog2e;
  rows.k(k0, k);
  rows.v(k0, v);
  float dk[kQk / 8][4] = {}, dv[kV / 8][4] = {};
  const auto start = [&](int q0, int stage) {
    Others& to = others[stage];
    rows.q(q0, to.qk);
    rows.d_o(q0, to.v);
    for (int i = static_cast<int>(threadIdx.x); i < kQ; i += kThreads) {
      const bool here = q0 + i < in.tokens;
      to.log_sum[i] = here ? b.log_sum[row0 + q0 + i] : 0;
      to.delta[i] = here ? b.delta[row0 + q0 + i] : 0;
      const uint64_t seen = seen_keys(b.a.selected, place.first, q0 + i, here, k0);
      to.seen[0][i] = static_cast<uint32_t>(seen);
      to.seen[1][i] = static_cast<uint32_t>(seen >> 32);
    }
  };
  const uint32_t own = 1u << (warp % 2 * 16 + lane / 4);  // of `key` in a half
  const auto multiply = [&](int, int stage) {
    const Others& from = others[stage];
    float p[kN][4] = {}, ds[kN][4] = {};
    rows_by_rows<kN>(k, warp * 16, from.qk, p);
    rows_by_rows<kN>(v, warp * 16, from.v, ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Queries past the last are zeros, so is what they add.
        const int i = n * 8 + lane % 4 * 2 + e % 2;
        const bool seen = (from.seen[warp / 2][i] & own << (e / 2 * 8)) != 0;
        p[n][e] = seen ? power<kExact>(fmaf(p[n][e], scale, -from.log_sum[i])) : 0;
        ds[n][e] = in.softmax_scale * p[n][e] * (ds[n][e] - from.delta[i]);
      }
    }
    by_columns(factor_of<kN, kExact>(p), from.v, dv);
    by_columns(factor_of<kN, kExact>(ds), from.qk, dk);
  };
  const auto next = [&](int q0) {  // in steps of kQ, tiles of kBlock
    while (q0 < in.tokens &&
           !b.a.selected.has_tile(place.first + q0 / kBlock * kBlock, place.block)) {
      q0 = (q0 / kBlock + 1) * kBlock;
    }
    return q0;
  };
  pipeline<kStages<kExact>>(k0, static_cast<int>(in.tokens), kQ, next, start, multiply);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t s = key + r * 8;
    const int64_t at = ((place.first + s) * in.heads + h) * (in.nope + in.v_dim);
    const bool rounded = !kExact && b.dkv != nullptr;
    if (rounded) {
      write_rounded(dk, r, s < in.tokens, b.dkv + at, in.nope, Unchanged());
      write_rounded(dv, r, s < in.tokens, b.dkv + at + in.nope, in.v_dim, Unchanged());
    }
    if (s >= in.tokens) continue;
    float* to = b.a.dkv + at;
    float* pe = b.dk_pe + (row0 + s) * in.rope;
#pragma unroll
    for (int n = 0; n < kQk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = n * 8 + lane % 4 * 2 + e;
        if (c < in.nope) {
          if (!rounded) to[c] = dk[n][2 * r + e];
        } else if (c < in.nope + in.rope) {
          pe[c - in.nope] = dk[n][2 * r + e];
        }
      }
    }
    if (rounded) continue;
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
__global__ void __launch_bounds__(kThreads)
    flash_queries(const __grid_constant__ Backward b, const Tiles tiles) {
  using Others = Stage<kQk, kV, kExact>;
  constexpr int kK = Others::kRows, kN = kK / 8;
  extern __shared__ __align__(16) unsigned char space[];
  auto& q = *reinterpret_cast<Tile<kBlock, kQk, kExact>*>(space);
  auto& d_o = *reinterpret_cast<Tile<kBlock, kV, kExact>*>(&q + 1);
  auto* others = reinterpret_cast<Others*>(&d_o + 1);
  const Place place = place_of(b.a.in, tiles);
  const Sequence& in = place.in;
  const int64_t h = blockIdx.y, row0 = h * b.a.in.tokens + place.first;
  const Rows<kQk, kV, kExact> rows{in, b.a.d_out + place.first * in.heads * in.v_dim, b.packed, h,
                                   place.first};
  const int q0 = (place.blocks - 1 - place.block) * kBlock;  // long rows first
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row = q0 + warp * 16 + lane / 4;
  const float scale = in.softmax_scale * kLog2e;
  rows.q(q0, q);
  rows.d_o(q0, d_o);
  float log_sum[2] = {}, delta[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + r * 8 >= in.tokens) continue;
    log_sum[r] = b.log_sum[row0 + row + r * 8];
    delta[r] = b.delta[row0 + row + r * 8];
  }
  float dq[kQk / 8][4] = {};
  const auto start = [&](int k0, int stage) {
    rows.k(k0, others[stage].qk);
    rows.v(k0, others[stage].v);
  };
  const auto multiply = [&](int k0, int stage) {
    const Others& from = others[stage];
    float p[kN][4] = {}, ds[kN][4] = {};
    uint64_t seen[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool there = row + r * 8 < in.tokens;
      seen[r] = seen_keys(b.a.selected, place.first, row + r * 8, there, k0) >> lane % 4 * 2;
    }
    rows_by_rows<kN>(q, warp * 16, from.qk, p);
    rows_by_rows<kN>(d_o, warp * 16, from.v, ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool own = (seen[e / 2] >> (n * 8 + e % 2) & 1) != 0;
        const float x = own ? power<kExact>(fmaf(p[n][e], scale, -log_sum[e / 2])) : 0;
        ds[n][e] = in.softmax_scale * x * (ds[n][e] - delta[e / 2]);
      }
    }
    by_columns(factor_of<kN, kExact>(ds), from.qk, dq);
  };
  const int end = min(q0 + kBlock, static_cast<int>(in.tokens));
  const auto next = [&](int key) {  // in steps of kK, tiles of kBlock
    const int tile = key / kBlock;
    const int met = next_tile(b.a.selected, place.first + q0, tile, q0 / kBlock + 1);
    return met == tile ? key : met * kBlock;
  };
  pipeline<kStages<kExact>>(0, end, kK, next, start, multiply);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t t = row + r * 8, token = place.first + t;
    const int64_t at = (token * in.heads + h) * (in.nope + in.rope);
    if (!kExact && b.dq != nullptr) {
      const auto turn_back = [&](int c, float& x, float& y) {
        if (c < in.nope || c >= in.nope + in.rope || t >= in.tokens) return;
        const int64_t angle = token * (in.rope / 2) + (c - in.nope) / 2;
        const RopePair p = rotated({x, y}, b.cos[angle], -b.sin[angle]);
        x = p.first;
        y = p.second;
      };
      write_rounded(dq, r, t < in.tokens, b.dq + at, in.nope + in.rope, turn_back);
      continue;
    }
    if (t >= in.tokens) continue;
    float* to = b.a.dq + at;
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

// The same turned back and rounded, rows `stride` apart; a thread a pair.
__global__ void __launch_bounds__(kThreads)
    flash_sum_heads_bf16(const __grid_constant__ Backward b, uint16_t* dk_pe, int64_t stride) {
  const int64_t half = b.a.in.rope / 2, n = b.a.in.tokens * half;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  RopePair sum = {0, 0};
  for (int64_t h = 0; h < b.a.in.heads; ++h) {
    const float2 part = reinterpret_cast<const float2*>(b.dk_pe)[h * n + i];
    sum.first += part.x;
    sum.second += part.y;
  }
  sum = rotated(sum, b.cos[i], -b.sin[i]);
  *reinterpret_cast<uint32_t*>(dk_pe + i / half * stride + i % half * 2) =
      pack(sum.first, sum.second);
}

// k_pe [tokens, rope] turned and rounded, from rows `stride` apart; a thread a pair.
__global__ void __launch_bounds__(kThreads) flash_turn_keys(const MlaTrainBf16Args a) {
  const int64_t half = a.in.rope / 2;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= a.in.tokens * half) return;
  const float* from = a.k_pe + i / half * a.k_pe_stride + i % half * 2;
  const RopePair p = rotated({from[0], from[1]}, a.cos[i], a.sin[i]);
  reinterpret_cast<uint32_t*>(a.turned_k_pe)[i] = pack(p.first, p.second);
}

// ---- launches

// The tiles of the sequences of `tokens` tokens that begin at `begins`.
Tiles list_tiles(KernelContext& context, std::span<const int64_t> begins, int64_t tokens) {
  std::vector<Runs::Run> all;
  for_each_begin(begins, tokens, [&](int64_t first, int64_t count) {
    if (count == 0) return;
    all.push_back({static_cast<int32_t>(first), static_cast<int32_t>(count), 0});
  });
  std::stable_sort(all.begin(), all.end(),
                   [](const Runs::Run& a, const Runs::Run& b) { return a.tokens > b.tokens; });
  Tiles tiles{nullptr, 0};
  for (Runs::Run& r : all) {
    r.block = tiles.count;
    tiles.count += (r.tokens + kBlock - 1) / kBlock;
  }
  tiles.list = static_cast<BlockTile*>(
      device_scratch(context, kListSlot, tiles.count * static_cast<int64_t>(sizeof(BlockTile))));
  for (size_t first = 0; first < all.size(); first += Runs::kMost) {
    const size_t count = std::min<size_t>(Runs::kMost, all.size() - first);
    Runs runs = {};
    std::copy_n(all.begin() + static_cast<int64_t>(first), count, runs.list);
    start(context, flash_list, dim3(static_cast<unsigned>(count)), 0, "mla_dense (tiles)", runs,
          tiles);
  }
  return tiles;
}

template <int kQk, int kV, bool kExact>
struct Flash {
  static constexpr size_t kForwardShared =
      2 * sizeof(Tile<kBlock, kQk, kExact>) + sizeof(Tile<kBlock, kV, kExact>);
  static constexpr size_t kBackwardShared = sizeof(Tile<kBlock, kQk, kExact>) +
                                            sizeof(Tile<kBlock, kV, kExact>) +
                                            kStages<kExact> * sizeof(Stage<kQk, kV, kExact>);
  // d_out may be null.
  static Packed pack_all(KernelContext& context, const Sequence& in, const float* d_out) {
    Packed packed{};
    if constexpr (!kExact) {
      const int64_t rows = in.tokens * in.heads, kv = in.nope + in.v_dim;
      const int64_t bytes = rows * (2 * kQk + 2 * kV) * int64_t{sizeof(__nv_bfloat16)};
      auto* to = static_cast<__nv_bfloat16*>(device_scratch(context, kPackSlot, bytes));
      auto* k = to + rows * kQk;
      auto* v = k + rows * kQk;
      auto* d_o = v + rows * kV;
      const auto pack = [&](auto kernel, int cols, const PackRows& p) {
        kernel<<<blocks_of(rows * cols / 8, kThreads), kThreads, 0, stream_of(context)>>>(p);
        check_launch("mla_dense (pack)");
      };
      const int64_t qk = in.nope + in.rope;
      pack(pack_rows<kQk>, kQk, {in.q, qk, qk, nullptr, 0, in.tokens, in.heads, to});
      pack(pack_rows<kQk>, kQk, {in.kv, kv, in.nope, in.k_pe, in.rope, in.tokens, in.heads, k});
      pack(pack_rows<kV>, kV, {in.kv + in.nope, kv, in.v_dim, nullptr, 0, in.tokens, in.heads, v});
      if (d_out != nullptr) {
        pack(pack_rows<kV>, kV, {d_out, in.v_dim, in.v_dim, nullptr, 0, in.tokens, in.heads, d_o});
      }
      const auto of = [&](const __nv_bfloat16* x, int cols) {
        return HeadRows{x, in.tokens * cols, cols, cols, nullptr, 0};
      };
      packed = {of(to, kQk), of(k, kQk), of(v, kV), of(d_o, kV)};
    }
    return packed;
  }

  static void forward(KernelContext& context, const Sequence& in, const Tiles& tiles,
                      const Packed& packed, const SelectionMask& mask, Put out, float* log_sum) {
    const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(in.heads));
    start(context, flash_forward<kQk, kV, kExact>, grid, kForwardShared, "mla_dense_train (flash)",
          in, tiles, packed, mask, out, log_sum);
  }
  static void backward(KernelContext& context, const Backward& b, const Tiles& tiles) {
    const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(b.a.in.heads));
    start(context, flash_keys<kQk, kV, kExact>, grid, kBackwardShared, "mla_dense_backward (keys)",
          b, tiles);
    start(context, flash_queries<kQk, kV, kExact>, grid, kBackwardShared,
          "mla_dense_backward (queries)", b, tiles);
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
}  // namespace flash

// Forward and backward in both precisions, which the arguments do not tell.
bool mla_flash_supports(const MlaSequence<float>& in) {
  if (in.nope + in.rope > 192 || in.v_dim > 128) return false;
  size_t bytes = 0;
  const auto count = [&](auto flash) {
    bytes = std::max({bytes, flash.kForwardShared, flash.kBackwardShared});
  };
  flash::with_flash_of<true>(in, count);
  flash::with_flash_of<false>(in, count);
  return bytes <= static_cast<size_t>(most_shared());
}

void mla_dense_train_flash(KernelContext& context, const MlaDenseTrainArgs& a) {
  using namespace flash;
  if (a.in.tokens == 0) return;
  with_flash(context, a.in, [&](auto flash) {
    const Packed packed = flash.pack_all(context, a.in, nullptr);
    const Tiles tiles = list_tiles(context, a.begins, a.in.tokens);
    flash.forward(context, a.in, tiles, packed, a.selected, {a.out, nullptr}, a.log_sum);
  });
}

void mla_dense_backward_flash(KernelContext& context, const MlaDenseBackwardArgs<float>& a) {
  using namespace flash;
  const Sequence& in = a.in;
  if (in.tokens == 0) return;
  const int64_t rows = in.tokens * in.heads;
  const bool known = a.out != nullptr && a.log_sum != nullptr;
  float* delta = scratch(context, kRowSlot, 2 * rows);
  const float *out = a.out, *log_sum = a.log_sum;
  with_flash(context, in, [&](auto flash) {
    const Packed packed = flash.pack_all(context, in, a.d_out);
    const Tiles tiles = list_tiles(context, a.begins, in.tokens);
    if (!known) {
      float *again = scratch(context, kOutSlot, rows * in.v_dim), *sums = delta + rows;
      flash.forward(context, in, tiles, packed, a.selected, {again, nullptr}, sums);
      out = again;
      log_sum = sums;
    }
    start_delta(context, in, a.d_out, out, delta);
    const Backward b{a,      log_sum, delta,   scratch(context, kRopeSlot, rows * in.rope),
                     packed, nullptr, nullptr, nullptr,
                     nullptr};
    flash.backward(context, b, tiles);
    if (in.rope == 0) return;
    flash_sum_heads<<<blocks_of(in.tokens * in.rope, kThreads), kThreads, 0, stream_of(context)>>>(
        b);
    check_launch("mla_dense_backward (heads)");
  });
}

namespace flash {
namespace {

// The same without arrays, for what kernels know of shapes.
Sequence shape_of(const MlaBf16Sequence& in) {
  return {nullptr, nullptr, nullptr,  in.tokens,       in.heads,
          in.nope, in.rope, in.v_dim, in.softmax_scale};
}

// Rows where the caller has them. d_out may be null.
Packed rows_of(const MlaBf16Sequence& in, const uint16_t* k_pe, const uint16_t* d_out) {
  const auto* q = reinterpret_cast<const __nv_bfloat16*>(in.q);
  const auto* kv = reinterpret_cast<const __nv_bfloat16*>(in.kv);
  const auto nope = static_cast<int>(in.nope), rope = static_cast<int>(in.rope);
  const auto v = static_cast<int>(in.v_dim), heads = static_cast<int>(in.heads);
  const int qk = nope + rope, row = heads * (nope + v);
  return {{q, qk, heads * qk, qk, nullptr, 0},
          {kv, nope + v, row, nope, reinterpret_cast<const __nv_bfloat16*>(k_pe), rope},
          {kv + nope, nope + v, row, v, nullptr, 0},
          {reinterpret_cast<const __nv_bfloat16*>(d_out), v, heads * v, v, nullptr, 0}};
}

}  // namespace
}  // namespace flash

bool mla_bf16_flash_supports(const MlaBf16Sequence& in) {
  return in.nope % 8 == 0 && in.rope % 8 == 0 && in.rope > 0 && in.v_dim % 8 == 0 &&
         mla_flash_supports(flash::shape_of(in));
}

void mla_train_bf16_flash(KernelContext& context, const MlaTrainBf16Args& a) {
  using namespace flash;
  if (a.in.tokens == 0) return;
  const Sequence shape = shape_of(a.in);
  flash_turn_keys<<<blocks_of(a.in.tokens * a.in.rope / 2, kThreads), kThreads, 0,
                    stream_of(context)>>>(a);
  check_launch("mla_train_bf16 (keys)");
  with_flash_of<false>(shape, [&](auto flash) {
    flash.forward(context, shape, list_tiles(context, a.begins, a.in.tokens),
                  rows_of(a.in, a.turned_k_pe, nullptr), {}, {nullptr, a.out}, a.log_sum);
  });
}

void mla_backward_bf16_flash(KernelContext& context, const MlaBackwardBf16Args& a) {
  using namespace flash;
  const Sequence shape = shape_of(a.in);
  if (shape.tokens == 0) return;
  const int64_t rows = shape.tokens * shape.heads;
  float* delta = scratch(context, kRowSlot, rows);
  start_delta(context, shape, a.d_out, a.out, delta);
  const Tiles tiles = list_tiles(context, a.begins, shape.tokens);
  Backward b = {};
  b.a.in = shape;
  b.log_sum = a.log_sum;
  b.delta = delta;
  b.dk_pe = scratch(context, kRopeSlot, rows * shape.rope);
  b.packed = rows_of(a.in, a.k_pe, a.d_out);
  b.dq = a.dq;
  b.dkv = a.dkv;
  b.cos = a.cos;
  b.sin = a.sin;
  with_flash_of<false>(shape, [&](auto flash) { flash.backward(context, b, tiles); });
  flash_sum_heads_bf16<<<blocks_of(shape.tokens * shape.rope / 2, kThreads), kThreads, 0,
                         stream_of(context)>>>(b, a.dk_pe, a.dk_pe_stride);
  check_launch("mla_backward_bf16 (heads)");
}

}  // namespace tamis
