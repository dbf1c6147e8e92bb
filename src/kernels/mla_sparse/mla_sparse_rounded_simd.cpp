// Attention over a selection with weights rounded to bf16 before the value product: the official
// order. It needs the sum of a row before any weight, so it keeps all scores of a task's rows and
// reads the list twice. Sums run over the list in order and nothing is merged: the bits of a row
// depend on its token alone, whoever computes it.
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/mla_sparse/mla_sparse_rounded_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set: what follows is not in alphabetical
// order on purpose.
#include "hwy/highway.h"
#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/mla_sparse_rows-inl.h"
#include "kernels/simd/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR

void run(KernelContext&, const MlaSparseArgs&) { throw_no_vectors(); }

#else

constexpr int kQ = 0, kRows = 1, kScores = 2, kAcc = 3;  // scratch

// One token and some of its heads.
void attend(KernelContext& context, int thread, const MlaSparseArgs& a, const Sizes& s,
            const Task& task) {
  const int64_t heads = task.heads();
  const List list = list_of(a, task.t0);
  const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[task.t0]];
  const int64_t stride = round_up(list.length, kTile);
  float* q = context.scratch(thread, kQ, heads * s.dim);
  float* tile = context.scratch(thread, kRows, kTile * s.row_stride);
  float* scores = context.scratch(thread, kScores, heads * stride);
  float* acc = context.scratch(thread, kAcc, heads * s.cols);
  load_queries(a, s, task, q);
  for (int64_t begin = 0; begin < list.length; begin += kTile) {
    const int64_t n = std::min(kTile, list.length - begin);
    load_tile(a, s, seq, list, begin, n, tile);
    prefetch_rows(a, seq, list, begin + kTile, begin + 2 * kTile);
    dot_rows(q, s.dim, heads, tile, s.row_stride, n, s.dim, scores + begin, stride);
  }
  for (int64_t h = 0; h < heads; ++h) softmax_row_bf16(scores + h * stride, list.length);
  std::fill(acc, acc + heads * s.cols, 0.0f);
  for (int64_t begin = 0; begin < list.length; begin += kTile) {
    const int64_t n = std::min(kTile, list.length - begin);
    if (list.length > kTile) load_tile(a, s, seq, list, begin, n, tile);  // else it is still there
    value_rows(scores + begin, stride, heads, tile, s.row_stride, n, s.latent, nullptr, acc, s.cols,
               kValueBlock);
  }
  for (int64_t h = 0; h < heads; ++h) {
    std::copy_n(acc + h * s.cols, s.latent, a.out + (task.t0 * a.heads + task.h0 + h) * s.latent);
  }
}

void run(KernelContext& context, const MlaSparseArgs& a) {
  const Sizes s(a);
  const int64_t threads = context.pool().num_threads(), tokens = a.tokens.num_tokens;
  int64_t groups = (a.heads + kMaxRows - 1) / kMaxRows;
  if (tokens * groups < threads) groups = std::min(threads, a.heads);
  const int64_t group_heads = (a.heads + groups - 1) / groups;
  context.pool().run(tokens * groups, [&](int64_t i, int thread) {
    // From the end: with all positions visible the last tokens take longest.
    const int64_t t = tokens - 1 - i / groups, h0 = i % groups * group_heads;
    const Task task{t, t + 1, h0, std::min(h0 + group_heads, a.heads)};
    if (task.heads() > 0) attend(context, thread, a, s, task);
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

void mla_sparse_rounded_simd(KernelContext& context, const MlaSparseArgs& args) {
  HWY_DYNAMIC_DISPATCH(run)(context, args);
}

}  // namespace tamis
#endif  // HWY_ONCE
