// indexer_health by blocks of queries, with the products of the warm-up loss (indexer_kl_simd.cpp).
#include <algorithm>
#include <vector>

#include "kernels/indexer_kl/indexer_health_impl.h"
#include "kernels/matmul/matmul.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/simd/row_ops.h"

namespace tamis {
namespace {

// Scratch slots of thread 0; matmul has slots 0 and 1 of every thread. Every thread's: kScores.
constexpr int kProducts = 4, kTarget = 5, kScores = 2, kMean = 3;

void measure_block(KernelContext& context, const IndexerHealthArgs<float>& args,
                   const QueryBlock& block, std::vector<IndexerHealth>& measured) {
  const IndexerSequence<float>& x = args.indexer;
  const int64_t seen = block.end, rows = block.rows(), heads = args.attention.heads;
  float* p = context.scratch(0, kTarget, rows * heads * seen);
  mla_probabilities_blocked(context, args.attention, block, p);
  float* a = context.scratch(0, kProducts, rows * x.heads * seen);
  const float* q = x.q + block.begin * x.heads * x.dim;
  matmul<float>(context, {q, x.dim, 1, x.k, 1, x.dim, a, seen, rows * x.heads, seen, x.dim});
  const float share = 1.0f / static_cast<float>(heads);
  context.pool().run(rows, [&](int64_t i, int thread) {
    const int64_t t = block.begin + i, n = t + 1;
    const float* own = p + i * heads * seen;
    const float* w = x.w + t * x.heads;
    float* mean = context.scratch(thread, kMean, n);
    std::copy_n(own, n, mean);
    for (int64_t h = 1; h < heads; ++h) add_row(own + h * seen, n, mean);
    for (int64_t s = 0; s < n; ++s) mean[s] *= share;
    float* score = context.scratch(thread, kScores, n);
    index_score_row(a + i * x.heads * seen, seen, w, x.heads, n, score);
    measured[static_cast<size_t>(t)] =
        indexer_health_row({own, seen, heads, mean, score, n, args.k, w, x.heads});
  });
}

}  // namespace

void indexer_health_blocked(KernelContext& context, const IndexerHealthArgs<float>& args) {
  const int64_t tokens = args.indexer.tokens;
  std::vector<IndexerHealth> measured(static_cast<size_t>(tokens));
  const int64_t size = query_block_size(tokens, std::max(args.indexer.heads, args.attention.heads));
  for (int64_t begin = 0; begin < tokens; begin += size) {
    measure_block(context, args, {begin, std::min(begin + size, tokens)}, measured);
  }
  for (const IndexerHealth& row : measured) args.sum->add(row);
}

}  // namespace tamis
