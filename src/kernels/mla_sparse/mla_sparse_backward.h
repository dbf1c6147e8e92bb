// The gradient of mla_sparse for one sequence whose tokens stand at positions 0 .. tokens-1, or for
// several, one after the other. The selection carries no gradient.
//
//   P[t,h,s] = softmax over s in S_t of the scores of mla_sparse.h
//   dP[s] = d_out[t,h] . c_kv[s]      dS[s] = softmax_scale * P[s] * (dP[s] - sum_r P[r] dP[r])
//   dq_latent[t,h] = sum_s dS[s] c_kv[s]      dc_kv[s] = sum_{t,h} dS[s] q_latent[t,h]
//                                                        + P[s] d_out[t,h]
//   dq_pe[t,h]     = sum_s dS[s] k_pe[s]      dk_pe[s] = sum_{t,h} dS[s] q_pe[t,h]
//
// Forward and backward gather the rows of S_t; the gradients of rows are scattered back in the
// order of the tokens (ordered_scatter.h). Work and memory grow with tokens * k.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/token_sequences.h"

namespace tamis {

template <typename T>
struct MlaSparseBackwardArgs {
  const T* q_latent = nullptr;  // [tokens, heads, kv_lora]
  const T* q_pe = nullptr;      // [tokens, heads, rope], rows of heads `q_pe_stride` apart
  int64_t q_pe_stride = 0;
  const T* c_kv = nullptr;  // [tokens, kv_lora]
  const T* k_pe = nullptr;  // [tokens, rope]
  int64_t tokens = 0, heads = 0, kv_lora = 0, rope = 0;
  // [tokens, k]: rows of c_kv and k_pe, ascending, -1 past the end; at least one a row.
  const int32_t* indices = nullptr;
  int64_t k = 0;
  T softmax_scale = 0;
  const T* d_out = nullptr;  // [tokens, heads, kv_lora]
  T* dq_latent = nullptr;    // shapes (and stride) of the inputs; all written
  T* dq_pe = nullptr;
  T* dc_kv = nullptr;
  T* dk_pe = nullptr;
  // What mla_sparse_train wrote, or null: then computed again where it is needed (CUDA).
  const T* out = nullptr;         // [tokens, heads, kv_lora]
  const T* log_sum = nullptr;     // [tokens, heads]
  TokenSequences sequences = {};  // a token's rows are of its own sequence
  // The tokens are number `first` and those after it of more, of which `sequences` tells and whose
  // rows c_kv and k_pe [first + tokens, ..], dc_kv and dk_pe have; every other array begins with
  // token `first`. The gradients of rows before it are added to: calls for all tokens in order
  // leave what one call for all of them would.
  int64_t first = 0;
};

template <typename T>
void mla_sparse_backward(KernelContext& context, const MlaSparseBackwardArgs<T>& args);

// p [tokens, k]: the mean over heads of P at the selected positions, 0 past the end of a row. What
// the indexer learns from.
template <typename T>
struct MlaSparseTargetArgs {
  MlaSparseBackwardArgs<T> in;  // its inputs without d_out
  T* p = nullptr;
};

template <typename T>
void mla_sparse_target(KernelContext& context, const MlaSparseTargetArgs<T>& args);

}  // namespace tamis
