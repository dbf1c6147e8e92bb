// The gradient of mla_dense for sequences whose tokens stand at positions 0 .. and are queries,
// keys and values at once, over everything up to a token or over the keys that a mask gives it.
//
//   P[t,h,s] = softmax of the scores of mla_dense.h over s <= t, or over those of them in the mask;
//              0 for the others
//   dP[s] = d_out[t,h] . v[s,h]      dS[s] = softmax_scale * P[s] * (dP[s] - sum_r P[r] dP[r])
//   dq_nope[t,h] = sum_s dS[s] k_nope[s,h]      dk_nope[s,h] = sum_{t >= s} dS[s] q_nope[t,h]
//   dq_pe[t,h]   = sum_s dS[s] k_pe[s]          dk_pe[s]     = sum_{t >= s, h} dS[s] q_pe[t,h]
//   dv[s,h]      = sum_{t >= s} P[s] d_out[t,h]
//
// Scores are computed again, for a block of queries at a time, so memory grows with tokens, never
// with their square. Sums over queries are added block by block in order: no atomics, the same bits
// on any number of threads.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/selection_mask.h"

namespace tamis {

// What scores are made of: the inputs of mla_dense for one sequence, or for several one after the
// other.
template <typename T>
struct MlaSequence {
  const T* q = nullptr;     // [tokens, heads, nope + rope], after RoPE
  const T* kv = nullptr;    // [tokens, heads, nope + v_dim]: k_nope then v
  const T* k_pe = nullptr;  // [tokens, rope], after RoPE
  int64_t tokens = 0, heads = 0, nope = 0, rope = 0, v_dim = 0;
  T softmax_scale = 0;
};

template <typename T>
struct MlaDenseBackwardArgs {
  MlaSequence<T> in;
  const T* d_out = nullptr;  // [tokens, heads, v_dim]
  T* dq = nullptr;           // shapes of q, kv and k_pe; written
  T* dkv = nullptr;
  T* dk_pe = nullptr;
  // Where the sequences of `in` begin, and its tokens at the end; empty: it is one.
  std::span<const int64_t> begins = {};
  // What mla_dense_train wrote to out and log_sum, or null: then both are computed again.
  const T* out = nullptr;
  const T* log_sum = nullptr;
  SelectionMask selected = {};  // of the same tokens
};

// The `tokens` tokens of `in` from `first` on.
template <typename T>
constexpr MlaSequence<T> mla_sequence_at(const MlaSequence<T>& in, int64_t first, int64_t tokens) {
  MlaSequence<T> s = in;
  s.q += first * in.heads * (in.nope + in.rope);
  s.kv += first * in.heads * (in.nope + in.v_dim);
  s.k_pe += first * in.rope;
  s.tokens = tokens;
  return s;
}

// Calls body(first, tokens) for every sequence of `tokens` tokens that begin at `begins`.
template <typename Body>
void for_each_begin(std::span<const int64_t> begins, int64_t tokens, const Body& body) {
  if (begins.empty()) return body(int64_t{0}, tokens);
  for (size_t i = 0; i + 1 < begins.size(); ++i) body(begins[i], begins[i + 1] - begins[i]);
}

template <typename T>
void mla_dense_backward(KernelContext& context, const MlaDenseBackwardArgs<T>& args);

}  // namespace tamis
