// Reads the first positions of a sequence from the cache as float: what the expanded form of
// attention multiplies by W_kvb.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/kv_layout.h"

namespace tamis {

struct KvGatherArgs {
  KvLayer kv;
  TokenMap tokens;          // the sequence of its first token is read; at least one token
  int64_t positions = 0;    // 0 .. positions-1
  float* latent = nullptr;  // [positions, kv_lora + rope]
  float* k_pe = nullptr;    // [positions, rope]: the last part again, by itself
};

void kv_gather(KernelContext& context, const KvGatherArgs& args);

}  // namespace tamis
