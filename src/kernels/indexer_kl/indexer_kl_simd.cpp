// indexer_kl by blocks of queries: the products q_j . k[s] of all heads [block, heads, seen]
// (dense) or [block, heads, k] over gathered keys (sparse), one loop over each row, and two matrix
// products (kernels/matmul) for dq and dk.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/matmul/matmul.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "kernels/mla_sparse/ordered_scatter.h"
#include "kernels/simd/row_ops.h"

namespace tamis {
namespace {

using Indexer = IndexerSequence<float>;

// Scratch slots of thread 0; matmul has slots 0 and 1 of every thread. kScores is every thread's.
constexpr int kProducts = 4, kTarget = 5, kKeys = 6, kScores = 2;

// One query: its products a [heads, stride] become their gradients.
void query_row(KernelContext& context, int thread, const Indexer& x, int64_t t, float* a,
               int64_t stride, const float* p, int64_t n) {
  float* score = context.scratch(thread, kScores, stride);
  const float* w = x.w + t * x.heads;
  index_score_row(a, stride, w, x.heads, n, score);
  x.kl[t] = kl_row(p, n, x.scale, score);
  index_score_backward_row(a, stride, w, x.heads, score, n, stride, x.dw + t * x.heads);
}

// p [block, heads, seen] -> the mean over heads, into head 0's rows.
void mean_over_heads(KernelContext& context, float* p, int64_t rows, int64_t heads, int64_t seen) {
  const float share = 1.0f / static_cast<float>(heads);
  context.pool().run(rows, [&](int64_t i, int) {
    float* mean = p + i * heads * seen;
    for (int64_t h = 1; h < heads; ++h) add_row(mean + h * seen, seen, mean);
    for (int64_t s = 0; s < seen; ++s) mean[s] *= share;
  });
}

void dense_block(KernelContext& context, const IndexerKlDenseArgs<float>& args,
                 const QueryBlock& block) {
  const Indexer& x = args.indexer;
  const int64_t seen = block.end, rows = block.rows(), heads = args.attention.heads;
  float* p = context.scratch(0, kTarget, rows * heads * seen);
  mla_probabilities_blocked(context, args.attention, block, p);
  mean_over_heads(context, p, rows, heads, seen);

  float* a = context.scratch(0, kProducts, rows * x.heads * seen);
  const float* q = x.q + block.begin * x.heads * x.dim;
  matmul<float>(context, {q, x.dim, 1, x.k, 1, x.dim, a, seen, rows * x.heads, seen, x.dim});
  context.pool().run(rows, [&](int64_t i, int thread) {
    query_row(context, thread, x, block.begin + i, a + i * x.heads * seen, seen,
              p + i * heads * seen, block.begin + i + 1);
  });
  const MatmulArgs<float> gradients[] = {
      {a, seen, 1, x.k, x.dim, 1, x.dq + block.begin * x.heads * x.dim, x.dim, rows * x.heads,
       x.dim, seen},
      {a, 1, seen, q, x.dim, 1, x.dk, x.dim, seen, x.dim, rows * x.heads, true}};
  matmuls<float>(context, gradients);
}

// Tokens [begin, begin + count) over their gathered keys.
void sparse_block(KernelContext& context, const IndexerKlSparseArgs<float>& args, int64_t begin,
                  int64_t count, InvertedIndex& index) {
  const Indexer& x = args.indexer;
  const int64_t k = args.count;
  float* keys = context.scratch(0, kKeys, count * k * x.dim);
  float* a = context.scratch(0, kProducts, count * x.heads * k);
  const int32_t* set = args.indices + begin * k;
  std::vector<MatmulArgs<float>> products, to_queries, to_keys;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = selected_count(set + i * k, k), at = (begin + i) * x.heads * x.dim;
    float *gathered = keys + i * k * x.dim, *product = a + i * x.heads * k;
    for (int64_t s = 0; s < n; ++s) {
      std::memcpy(gathered + s * x.dim, x.k + set[i * k + s] * x.dim,
                  static_cast<size_t>(x.dim) * sizeof(float));
    }
    products.push_back({x.q + at, x.dim, 1, gathered, 1, x.dim, product, k, x.heads, n, x.dim});
    to_queries.push_back({product, k, 1, gathered, x.dim, 1, x.dq + at, x.dim, x.heads, x.dim, n});
    to_keys.push_back({product, 1, k, x.q + at, x.dim, 1, gathered, x.dim, n, x.dim, x.heads});
  }
  matmuls<float>(context, products);
  context.pool().run(count, [&](int64_t i, int thread) {
    query_row(context, thread, x, begin + i, a + i * x.heads * k, k, args.p + (begin + i) * k,
              selected_count(set + i * k, k));
  });
  matmuls<float>(context, to_queries);
  matmuls<float>(context, to_keys);  // the keys' gradients take the gathered keys' place
  index.build(set, count, k);
  context.pool().run(index.touched(), [&](int64_t i, int) {
    float* dk = x.dk + index.position(i) * x.dim;
    index.for_each(i, [&](int64_t pair) { add_row(keys + pair * x.dim, x.dim, dk); });
  });
}

}  // namespace

void indexer_kl_dense_blocked(KernelContext& context, const IndexerKlDenseArgs<float>& args) {
  const Indexer& x = args.indexer;
  std::fill_n(x.dk, x.tokens * x.dim, 0.0f);
  const int64_t size = query_block_size(x.tokens, std::max(x.heads, args.attention.heads));
  for (int64_t begin = 0; begin < x.tokens; begin += size) {
    dense_block(context, args, {begin, std::min(begin + size, x.tokens)});
  }
}

void indexer_kl_sparse_gathered(KernelContext& context, const IndexerKlSparseArgs<float>& args) {
  const Indexer& x = args.indexer;
  constexpr int64_t kFloats = int64_t{1} << 22, kMost = 64;
  std::fill_n(x.dk, x.tokens * x.dim, 0.0f);
  InvertedIndex index(x.tokens);
  const int64_t size = std::clamp<int64_t>(kFloats / (args.count * x.dim), 1, kMost);
  for (int64_t begin = 0; begin < x.tokens; begin += size) {
    sparse_block(context, args, begin, std::min(size, x.tokens - begin), index);
  }
}

}  // namespace tamis
