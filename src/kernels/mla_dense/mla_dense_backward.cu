// mla_dense in training on CUDA by blocks of queries, as on CPUs: scores of all heads [heads,
// block, seen], their softmax, and products over all heads at once. At most about 256 MiB for each
// of P and dS.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/train_products.h"
#include "kernels/cuda/train_rows.h"
#include "kernels/mla_dense/mla_dense_backward_cuda.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kP = 0, kDs = 1, kHeads = 2;  // slots of scratch memory

using Sequence = MlaSequence<float>;

int64_t key_row(const Sequence& in) { return in.heads * (in.nope + in.v_dim); }
int64_t query_row(const Sequence& in) { return in.heads * (in.nope + in.rope); }

RowSet rows_of(const QueryBlock& block) { return {block.rows(), block.end, block.begin, nullptr}; }

// P, dS and what is multiplied with them: rows of `block.end` floats.
ProductOperand scores_of(const float* p, const QueryBlock& block) {
  return {p, block.end, block.rows() * block.end, 0, nullptr, 0};
}

TrainProducts begin_products(const QueryBlock& block, int64_t m, int64_t n, int64_t heads,
                             Causal causal) {
  TrainProducts p;
  p.m = m;
  p.n = n;
  p.batch = heads;
  p.causal = causal;
  p.offset = block.begin;
  return p;
}

// c [heads, block, seen] = x (rows of `width` values of each head) against columns of kv.
TrainProducts against_keys(const Sequence& in, const QueryBlock& block, float* c) {
  TrainProducts p = begin_products(block, block.rows(), block.end, in.heads, Causal::kScores);
  p.c = c;
  p.c_row = block.end;
  p.c_z = block.rows() * block.end;
  return p;
}

// ---- backward

void score_gradients(KernelContext& context, const MlaDenseBackwardArgs<float>& a,
                     const QueryBlock& block, const float* p, float* ds) {
  const Sequence& in = a.in;
  TrainProducts x = against_keys(in, block, ds);
  const int64_t row = in.heads * in.v_dim, kv = in.nope + in.v_dim;
  x.term[0] = {{a.d_out + block.begin * row, row, in.v_dim, 0, nullptr, 0},
               {in.kv + in.nope, key_row(in), kv, 0, nullptr, 0},
               in.v_dim,
               1};
  products_m_n(context, x);
  softmax_backward_rows(context, rows_of(block), in.heads, in.softmax_scale, p, ds);
}

void query_gradients(KernelContext& context, const MlaDenseBackwardArgs<float>& a,
                     const QueryBlock& block, const float* ds) {
  const Sequence& in = a.in;
  const int64_t qk = in.nope + in.rope;
  TrainProducts x = begin_products(block, block.rows(), in.nope, in.heads, Causal::kKeys);
  x.term[0] = {
      scores_of(ds, block), {in.kv, key_row(in), in.nope + in.v_dim, 0, nullptr, 0}, block.end, 1};
  x.c = a.dq + block.begin * query_row(in);
  x.c_row = query_row(in);
  x.c_z = qk;
  products_m_k(context, x);
  x.n = in.rope;
  x.term[0].b = {in.k_pe, in.rope, 0, 0, nullptr, 0};
  x.c += in.nope;
  products_m_k(context, x);
}

void key_gradients(KernelContext& context, const MlaDenseBackwardArgs<float>& a,
                   const QueryBlock& block, const float* p, const float* ds) {
  const Sequence& in = a.in;
  const int64_t qk = in.nope + in.rope, kv = in.nope + in.v_dim, out = in.heads * in.v_dim;
  const float* q = in.q + block.begin * query_row(in);
  TrainProducts x = begin_products(block, block.end, in.nope, in.heads, Causal::kQueries);
  x.add = true;
  x.term[0] = {scores_of(ds, block), {q, query_row(in), qk, 0, nullptr, 0}, block.rows(), 1};
  x.c = a.dkv;
  x.c_row = key_row(in);
  x.c_z = kv;
  products_k_k(context, x);

  x.n = in.v_dim;
  x.term[0] = {scores_of(p, block),
               {a.d_out + block.begin * out, out, in.v_dim, 0, nullptr, 0},
               block.rows(),
               1};
  x.c = a.dkv + in.nope;
  products_k_k(context, x);

  x.n = in.rope;  // every head's first, then their sum
  x.add = false;
  x.term[0] = {
      scores_of(ds, block), {q + in.nope, query_row(in), qk, 0, nullptr, 0}, block.rows(), 1};
  const int64_t count = block.end * in.rope;
  auto* heads = static_cast<float*>(device_scratch(context, kHeads, in.heads * count * 4));
  x.c = heads;
  x.c_row = in.rope;
  x.c_z = count;
  products_k_k(context, x);
  add_groups(context, heads, in.heads, count, a.dk_pe);
}

}  // namespace

int64_t cuda_query_block(int64_t tokens, int64_t rows_per_query) {
  constexpr int64_t kFloats = int64_t{1} << 26, kMultiple = 128, kFewest = 16;
  const int64_t fit = kFloats / std::max<int64_t>(1, tokens * rows_per_query);
  return std::max(kFewest, fit >= kMultiple ? fit / kMultiple * kMultiple : fit);
}

float* score_scratch(KernelContext& context, int slot, const QueryBlock& block, int64_t heads) {
  return static_cast<float*>(
      device_scratch(context, slot, heads * block.rows() * block.end * int64_t{4}));
}

void mla_probabilities_cuda(KernelContext& context, const MlaSequence<float>& in,
                            const QueryBlock& block, float* p) {
  const int64_t qk = in.nope + in.rope;
  TrainProducts x = against_keys(in, block, p);
  const float* q = in.q + block.begin * query_row(in);
  x.terms = 2;
  x.term[0] = {{q, query_row(in), qk, 0, nullptr, 0},
               {in.kv, key_row(in), in.nope + in.v_dim, 0, nullptr, 0},
               in.nope,
               1};
  x.term[1] = {{q + in.nope, query_row(in), qk, 0, nullptr, 0},
               {in.k_pe, in.rope, 0, 0, nullptr, 0},
               in.rope,
               1};
  products_m_n(context, x);
  softmax_rows(context, rows_of(block), in.heads, in.softmax_scale, p);
}

void mla_dense_train_cuda(KernelContext& context, const MlaDenseTrainArgs& a) {
  const Sequence& in = a.in;
  const int64_t size = cuda_query_block(in.tokens, in.heads);
  for (int64_t begin = 0; begin < in.tokens; begin += size) {
    const QueryBlock block{begin, std::min(begin + size, in.tokens)};
    float* p = score_scratch(context, kP, block, in.heads);
    mla_probabilities_cuda(context, in, block, p);
    TrainProducts x = begin_products(block, block.rows(), in.v_dim, in.heads, Causal::kKeys);
    x.term[0] = {scores_of(p, block),
                 {in.kv + in.nope, key_row(in), in.nope + in.v_dim, 0, nullptr, 0},
                 block.end,
                 1};
    x.c = a.out + begin * in.heads * in.v_dim;
    x.c_row = in.heads * in.v_dim;
    x.c_z = in.v_dim;
    products_m_k(context, x);
  }
}

void mla_dense_backward_cuda(KernelContext& context, const MlaDenseBackwardArgs<float>& a) {
  mla_dense_backward_cuda_by(context, a, cuda_query_block(a.in.tokens, a.in.heads));
}

void mla_dense_backward_cuda_by(KernelContext& context, const MlaDenseBackwardArgs<float>& a,
                                int64_t size) {
  const Sequence& in = a.in;
  if (in.tokens == 0) return;
  context.device()->fill(a.dkv, 0, in.tokens * key_row(in) * 4);
  context.device()->fill(a.dk_pe, 0, in.tokens * in.rope * 4);
  for (int64_t begin = 0; begin < in.tokens; begin += size) {
    const QueryBlock block{begin, std::min(begin + size, in.tokens)};
    float* p = score_scratch(context, kP, block, in.heads);
    float* ds = score_scratch(context, kDs, block, in.heads);
    mla_probabilities_cuda(context, in, block, p);
    score_gradients(context, a, block, p, ds);
    query_gradients(context, a, block, ds);
    key_gradients(context, a, block, p, ds);
  }
}

}  // namespace tamis
