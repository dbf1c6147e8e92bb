// Multi-head latent attention in its expanded (MHA) form, causal over a prefix.
//
//   score[t,h,s] = softmax_scale * (q_nope[t,h] . k_nope[s,h] + q_pe[t,h] . k_pe[s])
//   out[t,h]     = sum_{s <= position of t} softmax(score)[s] v[s,h]
//
// With `indices` only the selected positions are read. One sequence: keys and values of positions 0
// .. last are given expanded (W_kvb c_kv). Tiles of 64 positions counted from 0, so a row's bits
// depend on its own position alone. float32; the reference computes in double.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct MlaDenseArgs {
  const float* q = nullptr;  // [tokens, heads, nope + rope], nope first, rope part rotated
  int64_t tokens = 0, heads = 0, nope = 0, rope = 0, v_dim = 0;
  const int32_t* position = nullptr;  // [tokens], ascending
  int64_t positions = 0;              // of kv and k_pe; a device needs it with indices
  const float* kv = nullptr;          // [positions, heads, nope + v_dim]: k_nope then v
  const float* k_pe = nullptr;        // [positions, rope]
  const int32_t* indices = nullptr;   // [tokens, k]: the selected positions, ascending, -1 padded;
  int64_t k = 0;                      // null: every position up to the token's own
  float softmax_scale = 0;
  // P is rounded to bf16 before the value product. All factors must be bf16 values then: a device
  // multiplies them as such.
  bool round_bf16 = false;
  float* out = nullptr;  // [tokens, heads, v_dim]
};

void mla_dense(KernelContext& context, const MlaDenseArgs& args);

}  // namespace tamis
