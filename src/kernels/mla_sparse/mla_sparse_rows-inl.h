// What the vector versions of mla_sparse share, for one instruction set: the list of a token, the
// queries and the rows of a tile as float.
#if defined(TAMIS_KERNELS_MLA_SPARSE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_MLA_SPARSE_ROWS_INL_H_
#undef TAMIS_KERNELS_MLA_SPARSE_ROWS_INL_H_
#else
#define TAMIS_KERNELS_MLA_SPARSE_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/mla_sparse/mla_sparse.h"
#include "kernels/simd/cache_rows-inl.h"
#include "kernels/simd/tiles-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

constexpr int64_t kMaxRows = 32;  // (token, head) rows of a task: q, sums and tile fit in L2

// What token t attends to, in order.
struct List {
  const int32_t* indices = nullptr;  // null: 0, 1, 2 ...
  int64_t length = 0;

  int64_t operator[](int64_t i) const { return indices == nullptr ? i : indices[i]; }
};

HWY_INLINE List list_of(const MlaSparseArgs& a, int64_t t) {
  if (a.indices == nullptr) return {nullptr, a.tokens.position[t] + 1};
  const int32_t* row = a.indices + t * a.k;
  const int32_t* end = std::partition_point(row, row + a.k, [](int32_t i) { return i >= 0; });
  // So many ascending positions are all that the token sees.
  const bool all = end - row == a.tokens.position[t] + 1;
  return {all ? nullptr : row, end - row};
}

// Sizes shared by all tasks of a call.
struct Sizes {
  explicit Sizes(const MlaSparseArgs& a)
      : latent(a.kv.layout.kv_lora),
        dim(round_up(latent + a.kv.layout.rope, kDotLanes)),
        // An odd number of cache lines: a column of the tile spreads over all sets of the L1.
        row_stride(dim + (dim / kDotLanes % 2 == 0 ? kDotLanes : 0)),
        cols(round_up(latent, kDotLanes)) {}
  int64_t latent, dim, row_stride, cols;
};

// Tokens [t0, t1), which share their lists' rows, and heads [h0, h1).
struct Task {
  int64_t t0 = 0, t1 = 0, h0 = 0, h1 = 0;
  int64_t heads() const { return h1 - h0; }
  int64_t rows() const { return (t1 - t0) * heads(); }
};

// q [rows, dim]: q_latent and q_pe side by side, scaled, zeros up to dim.
HWY_INLINE void load_queries(const MlaSparseArgs& a, const Sizes& s, const Task& task, float* q) {
  const int64_t rope = a.kv.layout.rope;
  for (int64_t t = task.t0; t < task.t1; ++t) {
    for (int64_t h = task.h0; h < task.h1; ++h, q += s.dim) {
      const float* latent = a.q_latent + (t * a.heads + h) * s.latent;
      const float* pe = a.q_pe + t * a.q_pe_token_stride + h * a.q_pe_head_stride;
      for (int64_t i = 0; i < s.latent; ++i) q[i] = latent[i] * a.softmax_scale;
      for (int64_t i = 0; i < rope; ++i) q[s.latent + i] = pe[i] * a.softmax_scale;
      std::fill(q + s.latent + rope, q + s.dim, 0.0f);
    }
  }
}

HWY_INLINE void load_tile(const MlaSparseArgs& a, const Sizes& s, const KvSequence& seq,
                          const List& list, int64_t begin, int64_t n, float* tile) {
  const int64_t width = s.latent + a.kv.layout.rope;
  for (int64_t i = 0; i < n; ++i, tile += s.row_stride) {
    latent_row_to_float(a.kv.layout, latent_row(a.kv, seq, list[begin + i]), tile);
    std::fill(tile + width, tile + s.dim, 0.0f);
  }
  for (int64_t i = n; i % kKeyGroup != 0; ++i, tile += s.row_stride) {
    std::fill(tile, tile + s.dim, 0.0f);
  }
}

HWY_INLINE void prefetch_rows(const MlaSparseArgs& a, const KvSequence& seq, const List& list,
                              int64_t begin, int64_t end) {
  for (int64_t i = begin; i < std::min(end, list.length); ++i) {
    prefetch_bytes(latent_row(a.kv, seq, list[i]), a.kv.layout.latent_row_bytes());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
