// Dense attention in training on arrays that the products before it leave rounded to bf16, forward
// and backward, as mla_dense_train.h and mla_dense_backward.h have it: what those do with products
// of rounded factors, with the same bits, but that the sums over r P[r] dP[r] are those of d_out
// and of an output that was rounded, as a later product reads it. Nothing is packed, and float32
// arrays of all heads are neither written nor read. On a GPU alone.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tamis {

// As MlaSequence, in bf16.
struct MlaBf16Sequence {
  const uint16_t* q = nullptr;   // [tokens, heads, nope + rope], after RoPE
  const uint16_t* kv = nullptr;  // [tokens, heads, nope + v_dim]: k_nope then v
  int64_t tokens = 0, heads = 0, nope = 0, rope = 0, v_dim = 0;
  float softmax_scale = 0;
};

struct MlaTrainBf16Args {
  MlaBf16Sequence in;
  // Where the sequences of `in` begin, and its tokens at the end; empty: it is one.
  std::span<const int64_t> begins = {};
  const float* k_pe = nullptr;  // [tokens, k_pe_stride]: rope columns before RoPE
  int64_t k_pe_stride = 0;
  const float *cos = nullptr, *sin = nullptr;  // [tokens, rope / 2]: RoPE's, interleaved
  uint16_t* turned_k_pe = nullptr;             // [tokens, rope]: written for the backward pass
  uint16_t* out = nullptr;                     // [tokens, heads, v_dim]
  float* log_sum = nullptr;                    // [heads, tokens]: for the backward pass
};

struct MlaBackwardBf16Args {
  MlaBf16Sequence in;
  std::span<const int64_t> begins = {};
  const uint16_t* k_pe = nullptr;                   // turned_k_pe
  const uint16_t *out = nullptr, *d_out = nullptr;  // [tokens, heads, v_dim]
  const float* log_sum = nullptr;
  const float *cos = nullptr, *sin = nullptr;
  // The gradients of q and k_pe before RoPE, and of kv; written.
  uint16_t *dq = nullptr, *dkv = nullptr;
  uint16_t* dk_pe = nullptr;  // [tokens, dk_pe_stride]
  int64_t dk_pe_stride = 0;
};

// Whether attention of this shape can be computed so: a GPU whose products round their factors, and
// heads of whole 16 bytes that fit its shared memory.
bool mla_takes_bf16(const KernelContext& context, const MlaBf16Sequence& shape);

void mla_train_bf16(KernelContext& context, const MlaTrainBf16Args& args);
void mla_backward_bf16(KernelContext& context, const MlaBackwardBf16Args& args);

}  // namespace tamis
