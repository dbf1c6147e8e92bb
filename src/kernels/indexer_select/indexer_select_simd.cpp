// Scores by indexer_block_simd, selection by topk_row. Many tokens: a thread takes a run of tokens
// and keeps their scores to itself. Few tokens: the threads share the positions of each run.
#include <algorithm>
#include <numeric>

#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/topk/topk.h"

namespace tamis {
namespace {

// Scratch slots after those of indexer_block_simd; the last two of thread 0 only.
constexpr int kScores = 3, kWork = 4, kStarts = 5, kShared = 6;

int64_t longest(const TokenMap& m, int64_t t0, int64_t t1) {
  return t0 == t1 ? 0 : *std::max_element(m.position + t0, m.position + t1) + 1;
}

void select_row(KernelContext& context, int thread, const IndexerSelectArgs& a, int64_t t,
                const float* scores) {
  const int64_t visible = a.in.tokens.position[t] + 1;
  int32_t* out = a.indices + t * a.k;
  bool clean = true;
  if (visible <= a.k) {
    std::iota(out, out + visible, 0);
    std::fill(out + visible, out + a.k, -1);
  } else {
    float* work = context.scratch(thread, kWork, visible);
    clean = topk_row(scores, visible, a.k, work, out);
  }
  a.has_nan[t] = clean ? 0 : 1;
}

void select_runs(KernelContext& context, const IndexerSelectArgs& a, const int32_t* starts,
                 int64_t runs) {
  context.pool().run(runs, [&](int64_t i, int thread) {
    const int64_t t0 = starts[runs - 1 - i], t1 = starts[runs - i];
    const int64_t visible = longest(a.in.tokens, t0, t1);
    float* scores = nullptr;
    if (visible > a.k) {
      scores = context.scratch(thread, kScores, (t1 - t0) * visible);
      indexer_block_simd(context, thread, a.in, {t0, t1, 0, visible}, scores, visible);
    }
    for (int64_t t = t0; t < t1; ++t) {
      select_row(context, thread, a, t, scores == nullptr ? nullptr : scores + (t - t0) * visible);
    }
  });
}

void select_shared(KernelContext& context, const IndexerSelectArgs& a, const int32_t* starts,
                   int64_t runs) {
  constexpr int64_t kPositions = 1024;  // of a task
  const TokenMap& m = a.in.tokens;
  const int64_t stride = longest(m, 0, m.num_tokens);
  const int64_t parts = (stride + kPositions - 1) / kPositions;
  float* scores = context.scratch(0, kShared, m.num_tokens * stride);
  context.pool().run(stride > a.k ? runs * parts : 0, [&](int64_t i, int thread) {
    const int64_t t0 = starts[i / parts], t1 = starts[i / parts + 1];
    const int64_t begin = i % parts * kPositions, visible = longest(m, t0, t1);
    if (visible <= a.k || begin >= visible) return;
    indexer_block_simd(context, thread, a.in,
                       {t0, t1, begin, std::min(begin + kPositions, visible)},
                       scores + t0 * stride + begin, stride);
  });
  context.pool().run(m.num_tokens, [&](int64_t t, int thread) {
    select_row(context, thread, a, t, scores + t * stride);
  });
}

}  // namespace

void indexer_select_simd(KernelContext& context, const IndexerSelectArgs& a) {
  const int64_t tokens = a.in.tokens.num_tokens;
  auto* starts = reinterpret_cast<int32_t*>(context.scratch(0, kStarts, tokens + 1));
  const int64_t runs = indexer_cut_tokens(a.in, starts);
  if (runs < 4 * context.pool().num_threads()) {
    select_shared(context, a, starts, runs);
  } else {
    select_runs(context, a, starts, runs);
  }
}

}  // namespace tamis
