// Multi-head latent attention in its absorbed (MQA) form over a selected set of positions.
//
//   score[t,h,s] = softmax_scale * (q_latent[t,h] . c_kv[s] + q_pe[t,h] . k_pe[s])
//   P[t,h,:]     = softmax over s in S_t,   out[t,h] = sum_{s in S_t} P[t,h,s] c_kv[s]
//
// S_t is row t of `indices`, ascending, -1 past its end (never dereferenced); with no indices S_t
// is every position up to the token's own. Only selected rows of the cache are read. A row's sums
// run over S_t in order, in tiles counted from its start, so its bits depend on t alone: the same
// set gives the same bits whether it came as indices or not, alone or in a batch. At least one
// position must be selected. float32; the reference computes in double.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/kv_layout.h"

namespace tamis {

struct MlaSparseArgs {
  const float* q_latent = nullptr;  // [tokens, heads, kv_lora]: W_UK^T q_nope
  const float* q_pe = nullptr;      // [tokens, heads, rope], after RoPE
  int64_t q_pe_token_stride = 0, q_pe_head_stride = 0;
  int64_t heads = 0;
  KvLayer kv;
  TokenMap tokens;
  const int32_t* indices = nullptr;  // [tokens, k] or null: all visible positions
  int64_t k = 0;
  float softmax_scale = 0;
  bool round_bf16 = false;  // P is rounded to bf16 before the value product (official bf16 path)
  // Products of integers (mla_sparse_int16.h). On a CPU; CUDA has float32 alone, and no int8
  // precision that would ask.
  bool int16 = false;
  float* out = nullptr;  // [tokens, heads, kv_lora]
  // Optional [tokens, stride]: head-summed P at each position, 0 where nothing was selected (the
  // oracle selector and the recall meter read it).
  float* mass = nullptr;
  int64_t mass_stride = 0;
};

void mla_sparse(KernelContext& context, const MlaSparseArgs& args);

}  // namespace tamis
