// indexer_exact_few: scores of a page of 64 keys in float32, for up to four heads of keys that come
// in fours, by a block of 256 threads. One step of decoding waits for it, so nothing is read late:
// queries and weights are on their way while the page is looked up, and products read four values
// at once from shared memory. It may turn the queries. For its kernel and that of absorb_select.
#pragma once

#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/rope/rope_pair.cuh"

namespace tamis::indexer_few {

constexpr int kKeys = static_cast<int>(kPageTokens), kGroups = 4, kThreads = kKeys * kGroups;

// Shared memory: keys [kKeys][few_row(dim)], queries [kGroups][dim], sums [kGroups][kKeys].
__host__ __device__ constexpr int few_row(int dim) { return dim + 4; }
constexpr int64_t few_bytes(int dim) {
  return (int64_t{kKeys} * few_row(dim) + kGroups * dim + kThreads) * 4;
}

// Pair i of all heads of a token's queries, before and after RoPE.
struct QueryPair {
  float *first = nullptr, *second = nullptr;  // in shared memory; null: there is no pair i
  RopePair value;
  float cos, sin;
};

__device__ inline QueryPair load_pair(const RopeArgs& rope, const float* q, int64_t t, int i,
                                      int heads, int dim, float* queries) {
  const int half = static_cast<int>(rope.dim) / 2;
  QueryPair p;
  if (i >= heads * half) return p;
  const int h = i / half, at = i % half;
  const auto first = static_cast<int>(first_of_pair(rope.layout, at));
  const auto second = static_cast<int>(second_of_pair(rope.layout, at, half));
  p.value = {q[h * dim + first], q[h * dim + second]};
  p.cos = rope.cos[t * half + at];
  p.sin = rope.sin[t * half + at];
  p.first = queries + h * dim + first;
  p.second = queries + h * dim + second;
  return p;
}

__device__ inline void store_pair(const QueryPair& p) {
  if (p.first == nullptr) return;
  const RopePair turned = rotated(p.value, p.cos, p.sin);
  *p.first = turned.first;
  *p.second = turned.second;
}

// Scores of token t with the keys of its page `page_index`. shared: few_bytes(dim), aligned to 16.
// kDim: that of the keys, which are of float32 then; 0: any.
template <int kDim>
__device__ inline void exact_few(const IndexerArgs& a, const KvRows& any, const IndexerScores& to,
                                 int64_t t, int page_index, float* shared) {
  KvRows kv = any;
  if constexpr (kDim > 0) {
    kv.index_dim = kDim;
    kv.index_format = KvFormat::kF32;
  }
  const int dim = kv.index_dim, row = few_row(dim), heads = static_cast<int>(a.heads);
  float *queries = shared + kKeys * row, *sums = queries + kGroups * dim;
  const int begin = page_index * kKeys;
  const int key = threadIdx.x % kKeys, group = static_cast<int>(threadIdx.x) / kKeys;
  const float* q = a.q + t * heads * dim;
  const auto turned = static_cast<int>(to.rope.dim);  // the first dims of each head
  QueryPair pair;
  if (turned > 0) {
    pair = load_pair(to.rope, q, t, static_cast<int>(threadIdx.x), heads, dim, queries);
  }
  const int pieces = (dim - turned) / 4;
  for (int i = static_cast<int>(threadIdx.x); i < heads * pieces; i += kThreads) {
    const int at = i / pieces * dim + turned + i % pieces * 4;
    ptx::cp_async_16(queries + at, q + at);
  }
  ptx::cp_async_commit();
  const float w = group < heads ? a.w[t * heads + group] : 0;
  const KvSequence sequence = a.tokens.sequences[a.tokens.sequence[t]];
  const int visible = a.tokens.position[t] + 1;
  float* out = to.out + t * to.stride + begin;
  const bool here = visible > to.skip_visible && begin < visible;
  if (!here) {
    const bool fills = visible > to.skip_visible && to.fill && group == 0;
    if (fills && begin + key < to.columns) out[key] = -INFINITY;
    return ptx::cp_async_wait<0>();
  }
  const std::byte* page = page_of(kv, sequence, begin);
  const int keys = min(kKeys, visible - begin), fours = dim / 4;
  store_pair(pair);
  for (int i = static_cast<int>(threadIdx.x) + kThreads; i < heads * turned / 2; i += kThreads) {
    store_pair(load_pair(to.rope, q, t, i, heads, dim, queries));
  }
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < keys * fours; i += kThreads) {
    const int slot = i / fours, d = i % fours * 4;
    *reinterpret_cast<float4*>(shared + slot * row + d) = index_values(kv, page, slot, d);
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (key < keys) {
    const float *k = shared + key * row, *of_group = queries + min(group, heads - 1) * dim;
    float dot = 0;
#pragma unroll 8
    for (int d = 0; d < dim; d += 4) {
      const float4 x = *reinterpret_cast<const float4*>(of_group + d);
      const float4 y = *reinterpret_cast<const float4*>(k + d);
      dot = fmaf(x.x, y.x, dot);
      dot = fmaf(x.y, y.y, dot);
      dot = fmaf(x.z, y.z, dot);
      dot = fmaf(x.w, y.w, dot);
    }
    sums[group * kKeys + key] = group < heads ? fmaf(w, dot < 0 ? 0.0f : dot, 0.0f) : 0;
  }
  __syncthreads();
  if (group != 0 || begin + key >= to.columns) return;
  if (key < keys) {
    float sum = sums[key];
    for (int g = 1; g < kGroups; ++g) sum += sums[g * kKeys + key];
    out[key] = sum;
  } else if (to.fill) {
    out[key] = -INFINITY;
  }
}

// The kDim of exact_few that these keys ask for.
constexpr int kUsualDim = 128;
inline bool is_usual(const KvRows& kv) {
  return kv.index_dim == kUsualDim && kv.index_format == KvFormat::kF32;
}

inline bool takes_few(const IndexerArgs& a, const KvRows& kv) {
  return a.heads <= kGroups && kv.index_by_fours && reinterpret_cast<uintptr_t>(a.q) % 16 == 0;
}

}  // namespace tamis::indexer_few
