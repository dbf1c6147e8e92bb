// What the lightning indexer learns from: KL(p_t || softmax(I_t)) against the attention's own
// probabilities (DeepSeek-V3.2 report, eq. 3 and 4), its value and its gradient in one pass.
//
//   I[t,s] = sum_j w[t,j] ReLU(q[t,j] . k[s])             every scale folded into w
//   dense (warm-up):   p[t,s] = mean over heads of P[t,h,s], over every s <= t
//   dense with a mask: the same with P over S_t alone (mla_dense_backward.h), softmax(I) as well
//   sparse:            p[t,s] given, over s in S_t; softmax(I) over S_t as well
//   kl[t] = sum_s p ln p - p (I - log sum e^I),   0 ln 0 = 0
//   dI[s] = scale * (softmax(I)[s] - p[s])
//   dw[j] = sum_s dI[s] ReLU(q_j . k[s])      d(q_j . k[s]) = dI[s] w[j] where q_j . k[s] > 0
//
// p is a constant. Queries come in blocks whose scores are recomputed, so memory grows with tokens
// (dense) or tokens * k (sparse); dk is summed in a fixed order without atomics.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/mla_dense/mla_dense_backward.h"
#include "kernels/token_sequences.h"

namespace tamis {

// The indexer of one sequence, or of several one after the other, and where its gradients go.
template <typename T>
struct IndexerSequence {
  const T* q = nullptr;  // [tokens, heads, dim]
  const T* w = nullptr;  // [tokens, heads]
  const T* k = nullptr;  // [tokens, dim]
  int64_t tokens = 0, heads = 0, dim = 0;
  double scale = 1;                               // of the gradients
  double* kl = nullptr;                           // [tokens], not scaled
  T *dq = nullptr, *dw = nullptr, *dk = nullptr;  // shapes of q, w, k; written
};

template <typename T>
struct IndexerKlDenseArgs {
  IndexerSequence<T> indexer;
  MlaSequence<T> attention;  // the same tokens
  // Where the sequences begin, and the tokens at the end; empty: it is one.
  std::span<const int64_t> begins = {};
  // What mla_dense_train wrote for `attention` and the same mask, or null.
  const T* log_sum = nullptr;
  SelectionMask selected = {};  // S_t of each token; else every s <= t
};

template <typename T>
struct IndexerKlSparseArgs {
  IndexerSequence<T> indexer;
  const int32_t* indices = nullptr;  // [tokens, count]: rows of k, ascending, -1 past the end
  const T* p = nullptr;              // [tokens, count], 0 past the end
  int64_t count = 0;
  TokenSequences sequences = {};  // a token's rows are of its own sequence
};

template <typename T>
void indexer_kl_dense(KernelContext& context, const IndexerKlDenseArgs<T>& args);
// Whether mla_dense_train, mla_dense_backward and indexer_kl_dense take a mask in `context` with
// arguments of these shapes; nothing else of them is read. Always so on CPUs, by the references.
bool masked_attention_supported(const KernelContext& context,
                                const IndexerKlDenseArgs<float>& shapes);
template <typename T>
void indexer_kl_sparse(KernelContext& context, const IndexerKlSparseArgs<T>& args);

}  // namespace tamis
