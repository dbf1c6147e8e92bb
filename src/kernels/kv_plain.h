// A paged cache of one sequence over plain float32 rows, for the operations of training that run
// those that serve a model. Host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kv_append/kv_append.h"

namespace tamis {

class PlainCache {
 public:
  PlainCache(int64_t tokens, int64_t kv_lora, int64_t rope, int64_t index_dim) {
    const int64_t count = (tokens + kPageTokens - 1) / kPageTokens;
    layer_.layout = {kv_lora, rope, index_dim, KvFormat::kF32, KvFormat::kF32};
    layer_.page_stride = layer_.layout.page_bytes();
    memory_.resize(static_cast<size_t>(count * layer_.page_stride));
    layer_.base = memory_.data();
    for (int64_t p = 0; p < count; ++p) pages_.push_back(static_cast<int32_t>(p));
    for (int64_t t = 0; t < tokens; ++t) position_.push_back(static_cast<int32_t>(t));
    sequence_of_.resize(position_.size());
    sequence_.pages = pages_.data();
  }

  // k_pe and index_key as kv_append.h has them.
  void append(KernelContext& context, const float* c_kv, const float* k_pe, int64_t k_pe_stride,
              const float* index_key) {
    KvAppendArgs a;
    a.c_kv = c_kv;
    a.k_pe = k_pe;
    a.k_pe_stride = k_pe_stride;
    a.index_key = index_key;
    a.kv = layer_;
    a.tokens = tokens();
    kv_append(context, a);
  }

  const KvLayer& layer() const { return layer_; }
  TokenMap tokens() const {
    return {static_cast<int64_t>(position_.size()), sequence_of_.data(), position_.data(),
            &sequence_, static_cast<int64_t>(position_.size())};
  }

 private:
  KvLayer layer_;
  std::vector<std::byte> memory_;
  std::vector<int32_t> pages_, position_, sequence_of_;
  KvSequence sequence_;
};

}  // namespace tamis
