// indexer_kl on CUDA by blocks of queries, as on CPUs: the products q_j . k[s] of all heads [heads,
// block, seen] (dense) or [heads, block, k] over gathered keys (sparse), one pass over each row,
// and products for dq and dk.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/train_products.h"
#include "kernels/cuda/train_rows.h"
#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/mla_dense/mla_dense_backward_cuda.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using Indexer = IndexerSequence<float>;

// Slots of scratch memory; scatter_rows has 7.
constexpr int kTarget = 0, kProducts = 1, kRows = 2, kScore = 3;

TrainProducts products_of(int64_t m, int64_t n, int64_t batch, const ProductTerm& term) {
  TrainProducts p;
  p.m = m;
  p.n = n;
  p.batch = batch;
  p.term[0] = term;
  return p;
}

void dense_block(KernelContext& context, const IndexerKlDenseArgs<float>& args,
                 const QueryBlock& block) {
  const Indexer& x = args.indexer;
  const int64_t rows = block.rows(), seen = block.end, width = x.heads * x.dim;
  const RowSet set{rows, seen, block.begin, nullptr};
  float* p = score_scratch(context, kTarget, block, args.attention.heads);
  float* a = score_scratch(context, kProducts, block, x.heads);
  float* score = score_scratch(context, kScore, block, 1);
  mla_probabilities_cuda(context, args.attention, block, p);
  mean_rows(context, set, args.attention.heads, p, p);

  const ProductOperand q{x.q + block.begin * width, width, x.dim, 0, nullptr, 0};
  const ProductOperand keys{x.k, x.dim, 0, 0, nullptr, 0};
  const ProductOperand scores{a, seen, rows * seen, 0, nullptr, 0};
  TrainProducts products = products_of(rows, seen, x.heads, {q, keys, x.dim, 1});
  products.c = a;
  products.c_row = seen;
  products.c_z = rows * seen;
  products.causal = Causal::kScores;
  products.offset = block.begin;
  products_m_n(context, products);
  index_kl_rows(context, set,
                {a, x.w + block.begin * x.heads, x.heads, p, score, x.scale, x.kl + block.begin,
                 x.dw + block.begin * x.heads});

  TrainProducts dq = products_of(rows, x.dim, x.heads, {scores, keys, seen, 1});
  dq.c = x.dq + block.begin * width;
  dq.c_row = width;
  dq.c_z = x.dim;
  dq.causal = Causal::kKeys;
  dq.offset = block.begin;
  products_m_k(context, dq);
  TrainProducts dk = products_of(seen, x.dim, x.heads, {scores, q, rows, 1});  // every head's
  const int64_t values = seen * x.dim;
  dk.c = static_cast<float*>(device_scratch(context, kRows, x.heads * values * 4));
  dk.c_row = x.dim;
  dk.c_z = values;
  dk.causal = Causal::kQueries;
  dk.offset = block.begin;
  products_k_k(context, dk);
  add_groups(context, dk.c, x.heads, values, x.dk);
}

void sparse_block(KernelContext& context, const IndexerKlSparseArgs<float>& args, int64_t begin,
                  int64_t count) {
  const Indexer& x = args.indexer;
  const int64_t k = args.count, width = x.heads * x.dim;
  const int32_t* indices = args.indices + begin * k;
  const RowSet set{count, k, 0, indices};
  const auto scratch = [&](int slot, int64_t floats) {
    return static_cast<float*>(device_scratch(context, slot, floats * 4));
  };
  float* a = scratch(kProducts, count * x.heads * k);
  float* score = scratch(kScore, count * k);
  float* rows = scratch(kRows, count * k * x.dim);

  const ProductOperand q{x.q + begin * width, x.dim, width, 0, nullptr, 0};
  const ProductOperand keys{x.k, x.dim, 0, 0, indices, k};
  const ProductOperand scores{a, count * k, k, 0, nullptr, 0};
  TrainProducts products = products_of(x.heads, k, count, {q, keys, x.dim, 1});
  products.c = a;
  products.c_row = count * k;
  products.c_z = k;
  products_m_n(context, products);
  index_kl_rows(context, set,
                {a, x.w + begin * x.heads, x.heads, args.p + begin * k, score, x.scale,
                 x.kl + begin, x.dw + begin * x.heads});
  TrainProducts dq = products_of(x.heads, x.dim, count, {scores, keys, k, 1});
  dq.c = x.dq + begin * width;
  dq.c_row = x.dim;
  dq.c_z = width;
  products_m_k(context, dq);
  TrainProducts dk = products_of(k, x.dim, count, {scores, q, x.heads, 1});
  dk.c = rows;
  dk.c_row = x.dim;
  dk.c_z = k * x.dim;
  products_k_k(context, dk);
  scatter_rows(context, {indices, count, k, begin + count, rows, x.dim, x.dim, x.dk, nullptr,
                         args.sequences, begin});
}

}  // namespace

void indexer_kl_dense_cuda(KernelContext& context, const IndexerKlDenseArgs<float>& args) {
  const Indexer& x = args.indexer;
  indexer_kl_dense_cuda_by(context, args,
                           cuda_query_block(x.tokens, std::max(x.heads, args.attention.heads)));
}

void indexer_kl_dense_cuda_by(KernelContext& context, const IndexerKlDenseArgs<float>& args,
                              int64_t size) {
  const Indexer& x = args.indexer;
  if (x.tokens == 0) return;
  context.device()->fill(x.dk, 0, x.tokens * x.dim * 4);
  for (int64_t begin = 0; begin < x.tokens; begin += size) {
    dense_block(context, args, {begin, std::min(begin + size, x.tokens)});
  }
}

void indexer_kl_sparse_cuda(KernelContext& context, const IndexerKlSparseArgs<float>& args) {
  constexpr int64_t kFloats = int64_t{1} << 26, kMost = 32768;  // of a grid's third side
  const int64_t token = args.count * (args.indexer.dim + args.indexer.heads);
  indexer_kl_sparse_cuda_by(context, args, std::clamp<int64_t>(kFloats / token, 1, kMost));
}

void indexer_kl_sparse_cuda_by(KernelContext& context, const IndexerKlSparseArgs<float>& args,
                               int64_t size) {
  const Indexer& x = args.indexer;
  if (x.tokens == 0) return;
  context.device()->fill(x.dk, 0, x.tokens * x.dim * 4);
  for (int64_t begin = 0; begin < x.tokens; begin += size) {
    sparse_block(context, args, begin, std::min(size, x.tokens - begin));
  }
}

}  // namespace tamis
