// Writes new tokens into a layer's cache: latent, RoPE key and indexer key together.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/kv_layout.h"

namespace tamis {

struct KvAppendArgs {
  const float* c_kv = nullptr;  // [tokens, kv_lora], after its norm; null: the indexer key alone
  const float* k_pe = nullptr;  // [tokens, rope] rows of k_pe_stride, after RoPE
  int64_t k_pe_stride = 0;
  const float* index_key = nullptr;  // [tokens, index_dim]; null where the layer keeps none
  bool ue8m0_scale = false;          // FP8 indexer keys: power-of-two scales
  KvLayer kv;
  TokenMap tokens;
};

void kv_append(KernelContext& context, const KvAppendArgs& args);

}  // namespace tamis
