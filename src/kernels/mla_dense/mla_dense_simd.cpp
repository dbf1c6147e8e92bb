// Attention in the expanded form, vectorised: the tiles and the softmax of mla_sparse_simd.cpp with
// queries in the place of heads. A task is one head and a block of queries; the keys and values of
// a tile are gathered once (1/60 of the arithmetic) so that their rows lie close together. A
// selection only masks here: this form serves prefills about as short as the selection.
//
// With `round_bf16` a weight is rounded after its division by the row's sum: all scores of a task's
// rows are kept, and the tiles are read a second time for the values.
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/mla_dense/mla_dense_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set: what follows is not in alphabetical
// order on purpose.
#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "kernels/mla_dense/mla_dense_impl.h"
#include "kernels/simd/cache_rows-inl.h"
#include "kernels/simd/panels-inl.h"
#include "kernels/simd/softmax-inl.h"
#include "kernels/simd/tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR

void run(KernelContext&, const MlaDenseArgs&) { throw_no_vectors(); }

#else

constexpr int64_t kBlock = 60;  // queries of a task: whole register tiles
static_assert(kBlock % kTileRows == 0);
constexpr int kQ = 0, kKeys = 1, kValues = 2, kScores = 3, kAcc = 4, kStates = 5;  // scratch

// An odd number of cache lines: a column of a tile spreads over all sets of the L1.
int64_t odd_lines(int64_t floats) { return floats + (floats / kDotLanes % 2 == 0 ? kDotLanes : 0); }

struct Sizes {
  explicit Sizes(const MlaDenseArgs& a)
      : dim(round_up(a.nope + a.rope, kDotLanes)),
        cols(round_up(a.v_dim, kDotLanes)),
        key_stride(odd_lines(dim)),
        value_stride(odd_lines(cols)) {}
  int64_t dim, cols, key_stride, value_stride;
};

// Queries [t0, t1) of one head, with the thread's buffers.
struct Task {
  int64_t head, t0, t1;
  float *q, *keys, *values, *scores, *acc;
  float* alpha;  // [rows]: what a row's sums are multiplied by before a tile is added
  RowState* states;
  float* panels;
  int64_t rows() const { return t1 - t0; }
  bool use_panels() const { return rows() >= kTileRows; }  // fewer do not pay for making them
};

// With panels q lies as order_queries leaves it.
void load_queries(const MlaDenseArgs& a, const Sizes& s, const Task& task) {
  const int64_t width = a.nope + a.rope;
  for (int64_t t = task.t0; t < task.t1; ++t) {
    const float* in = a.q + (t * a.heads + task.head) * width;
    float* out = task.q + (t - task.t0) * s.dim;
    for (int64_t i = 0; i < width; ++i) out[i] = in[i] * a.softmax_scale;
    std::fill(out + width, out + s.dim, 0.0f);
  }
  if (task.use_panels()) order_queries(task.q, task.rows(), s.dim, task.panels);
}

// scores [rows, stride] of the n keys of the tile.
void score_tile(const Sizes& s, const Task& task, int64_t n, float* scores, int64_t stride) {
  if (!task.use_panels()) {
    return dot_rows(task.q, s.dim, task.rows(), task.keys, s.key_stride, n, s.dim, scores, stride);
  }
  fill_panels(task.keys, s.key_stride, n, s.dim, task.panels);
  dot_panels(task.q, 0, task.rows(), task.panels, n, s.dim, scores, stride, [](int64_t) {});
}

void load_tile(const MlaDenseArgs& a, const Sizes& s, const Task& task, int64_t begin, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float* kv = a.kv + ((begin + i) * a.heads + task.head) * (a.nope + a.v_dim);
    float* key = task.keys + i * s.key_stride;
    float* value = task.values + i * s.value_stride;
    std::copy_n(kv, a.nope, key);
    std::copy_n(a.k_pe + (begin + i) * a.rope, a.rope, key + a.nope);
    std::fill(key + a.nope + a.rope, key + s.dim, 0.0f);
    std::copy_n(kv + a.nope, a.v_dim, value);
    std::fill(value + a.v_dim, value + s.cols, 0.0f);
  }
  for (int64_t i = n; i % kKeyGroup != 0; ++i) {
    std::fill_n(task.keys + i * s.key_stride, s.dim, 0.0f);
  }
}

// Rows of one head lie heads * (nope + v_dim) floats apart, on pages of their own: no hardware
// prefetcher follows. The next tile's rows are asked for before the arithmetic of this one.
void prefetch_tile(const MlaDenseArgs& a, const Task& task, int64_t begin, int64_t end) {
  const int64_t width = a.nope + a.v_dim;
  for (int64_t s = begin; s < std::min(begin + kTile, end); ++s) {
    const float* row = a.kv + (s * a.heads + task.head) * width;
    prefetch_bytes(reinterpret_cast<const std::byte*>(row), width * 4);
  }
}

// How many positions of the tile at `begin` query t sees.
int64_t visible(const MlaDenseArgs& a, int64_t t, int64_t begin) {
  return std::clamp<int64_t>(a.position[t] + 1 - begin, 0, kTile);
}

// Leaves of query t's scores in the tile those of its selection, the others become -inf. False if
// none is left: then all become 0, the weights of a tile that adds nothing. The same set gives the
// same bits with indices and without.
bool keep_selected(const MlaDenseArgs& a, int64_t t, int64_t begin, float* scores) {
  if (a.indices == nullptr) return true;
  const int32_t* row = a.indices + t * a.k;
  const int32_t* end = std::partition_point(row, row + a.k, [](int32_t i) { return i >= 0; });
  const int32_t* next = std::lower_bound(row, end, static_cast<int32_t>(begin));
  const bool any = next != end && *next < begin + kTile;
  float kept[kTile];
  std::fill_n(kept, kTile, any ? -HUGE_VALF : 0.0f);
  for (; next != end && *next < begin + kTile; ++next) kept[*next - begin] = scores[*next - begin];
  std::copy_n(kept, kTile, scores);
  return any;
}

// The value product of rows that see different numbers of positions: together as far as all see,
// then each alone. A weight of 0 instead would let a NaN of a position it does not see into a row.
// Without `alpha` nothing is multiplied.
void add_values(const MlaDenseArgs& a, const Sizes& s, const Task& task, int64_t begin,
                const float* p, int64_t p_stride, const float* alpha) {
  for (int64_t r = 0; r < task.rows();) {
    const int64_t group = tile_rows(task.rows() - r);
    int64_t common = kTile;
    for (int64_t i = r; i < r + group; ++i) {
      common = std::min(common, visible(a, task.t0 + i, begin));
    }
    value_rows(p + r * p_stride, p_stride, group, task.values, s.value_stride, common, a.v_dim,
               alpha == nullptr ? nullptr : alpha + r, task.acc + r * s.cols, s.cols, kValueBlock);
    for (int64_t i = r; i < r + group; ++i) {
      value_rows(p + i * p_stride + common, p_stride, 1, task.values + common * s.value_stride,
                 s.value_stride, visible(a, task.t0 + i, begin) - common, a.v_dim, nullptr,
                 task.acc + i * s.cols, s.cols, kValueBlock);
    }
    r += group;
  }
}

void attend_tile(const MlaDenseArgs& a, const Sizes& s, const Task& task, int64_t begin,
                 int64_t end) {
  const int64_t n = std::min(kTile, end - begin);
  load_tile(a, s, task, begin, n);
  prefetch_tile(a, task, begin + kTile, end);
  score_tile(s, task, n, task.scores, kTile);
  bool all_see_all = true;
  for (int64_t r = 0; r < task.rows(); ++r) {
    const int64_t seen = visible(a, task.t0 + r, begin);
    all_see_all &= seen == n;
    task.alpha[r] = 1;
    if (seen == 0 || !keep_selected(a, task.t0 + r, begin, task.scores + r * kTile)) continue;
    task.alpha[r] = softmax_tile(task.scores + r * kTile, seen, task.states + r);
  }
  if (all_see_all) {
    value_rows(task.scores, kTile, task.rows(), task.values, s.value_stride, n, a.v_dim, task.alpha,
               task.acc, s.cols, kValueBlock);
  } else {
    add_values(a, s, task, begin, task.scores, kTile, task.alpha);
  }
}

int64_t last_seen(const MlaDenseArgs& a, const Task& task) {
  return *std::max_element(a.position + task.t0, a.position + task.t1) + 1;
}

float* output(const MlaDenseArgs& a, const Task& task, int64_t r) {
  return a.out + ((task.t0 + r) * a.heads + task.head) * a.v_dim;
}

void attend(const MlaDenseArgs& a, const Sizes& s, const Task& task) {
  std::fill(task.states, task.states + task.rows(), RowState());
  const int64_t end = last_seen(a, task);
  for (int64_t begin = 0; begin < end; begin += kTile) attend_tile(a, s, task, begin, end);
  for (int64_t r = 0; r < task.rows(); ++r) {
    finish_row(task.acc + r * s.cols, kValueBlock, task.states[r], a.v_dim, output(a, task, r));
  }
}

// Of query t's scores those of its selection stay, the others become -inf.
void mask_unselected(const MlaDenseArgs& a, int64_t t, float* scores) {
  if (a.indices == nullptr) return;
  int64_t next = 0;
  for (const int32_t* i = a.indices + t * a.k; i < a.indices + (t + 1) * a.k && *i >= 0; ++i) {
    std::fill(scores + next, scores + *i, -HUGE_VALF);
    next = *i + 1;
  }
  std::fill(scores + next, scores + a.position[t] + 1, -HUGE_VALF);
}

// With rounded weights. scores [rows, stride].
void attend_rounded(const MlaDenseArgs& a, const Sizes& s, const Task& task, int64_t stride) {
  const int64_t end = last_seen(a, task);
  for (int64_t begin = 0; begin < end; begin += kTile) {
    const int64_t n = std::min(kTile, end - begin);
    load_tile(a, s, task, begin, n);
    prefetch_tile(a, task, begin + kTile, end);
    score_tile(s, task, n, task.scores + begin, stride);
  }
  for (int64_t r = 0; r < task.rows(); ++r) {
    mask_unselected(a, task.t0 + r, task.scores + r * stride);
    softmax_row_bf16(task.scores + r * stride, a.position[task.t0 + r] + 1);
  }
  for (int64_t begin = 0; begin < end; begin += kTile) {
    load_tile(a, s, task, begin, std::min(kTile, end - begin));
    add_values(a, s, task, begin, task.scores + begin, stride, nullptr);
  }
  for (int64_t r = 0; r < task.rows(); ++r) {
    std::copy_n(task.acc + r * s.cols, a.v_dim, output(a, task, r));
  }
}

// Queries of a task. Rounded weights: fewer where the scores of all would take more than 4 MiB.
int64_t block_rows(const MlaDenseArgs& a, int64_t score_stride) {
  constexpr int64_t kScoreFloats = 1 << 20, kGroup = kTileRows;
  if (!a.round_bf16) return kBlock;
  return std::clamp(kScoreFloats / score_stride / kGroup * kGroup, kGroup, kBlock);
}

void run(KernelContext& context, const MlaDenseArgs& a) {
  if (a.tokens == 0) return;
  const Sizes s(a);
  const int64_t positions = *std::max_element(a.position, a.position + a.tokens) + 1;
  const int64_t stride = a.round_bf16 ? round_up(positions, kTile) : kTile;
  const int64_t rows = block_rows(a, stride), blocks = (a.tokens + rows - 1) / rows;
  static_assert(sizeof(RowState) == 2 * sizeof(float));
  context.pool().run(blocks * a.heads, [&](int64_t i, int thread) {
    float* states = context.scratch(thread, kStates, 3 * rows);
    const int64_t key_floats = kTile * s.key_stride;
    float* keys = context.scratch(thread, kKeys, key_floats + panel_floats(kTile, s.dim));
    // From the end: the last queries see most.
    const int64_t block = blocks - 1 - i / a.heads;
    const Task task{i % a.heads,
                    block * rows,
                    std::min((block + 1) * rows, a.tokens),
                    context.scratch(thread, kQ, rows * s.dim),
                    keys,
                    context.scratch(thread, kValues, kTile * s.value_stride),
                    context.scratch(thread, kScores, rows * stride),
                    context.scratch(thread, kAcc, rows * s.cols),
                    states + 2 * rows,
                    reinterpret_cast<RowState*>(states),
                    keys + key_floats};
    load_queries(a, s, task);
    std::fill(task.acc, task.acc + task.rows() * s.cols, 0.0f);
    a.round_bf16 ? attend_rounded(a, s, task, stride) : attend(a, s, task);
  });
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {

HWY_EXPORT(run);

void mla_dense_simd(KernelContext& context, const MlaDenseArgs& args) {
  HWY_DYNAMIC_DISPATCH(run)(context, args);
}

}  // namespace tamis
#endif  // HWY_ONCE
