// The intermediate results of one forward pass. Buffers grow to the largest batch seen and stay, so
// a decode loop allocates nothing after its first step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/linear/linear.h"

namespace tamis {

template <typename T>
class GrowBuffer {
 public:
  // At least n elements; earlier contents are lost when it grows.
  T* get(int64_t n) {
    if (static_cast<int64_t>(data_.size()) < n) data_.resize(static_cast<size_t>(n));
    return data_.data();
  }
  T* data() { return data_.data(); }

 private:
  std::vector<T> data_;
};

struct Activations {
  using Floats = GrowBuffer<float>;
  // Residual stream. `x` is the stream before the last half-block's output `delta` is added: the
  // next norm adds the two, as the official code does.
  Floats x, delta, normed;
  Floats cos, sin;
  // MLA: names of the paper.
  Floats q_lora, q, kv_a, c_kv, q_latent, o_latent, o, o_all;
  Floats k_expanded, kv_expanded, k_pe_expanded;  // expanded (MHA) form
  // Indexer.
  Floats index_q, index_k, index_w, index_scores;
  GrowBuffer<int32_t> topk;
  GrowBuffer<uint8_t> has_nan;
  // FFN.
  Floats router, expert_weights, expert_rows, gate, up, down, shared_gate, shared_up, shared_all,
      shared_down;
  GrowBuffer<int32_t> expert_ids, expert_row_of;
  GrowBuffer<int64_t> expert_offsets;
  std::vector<LinearArgs> linears;  // the products of one parallel loop
  // Head, and the part of an output that one of several ranks computes.
  Floats final_rows, part, gathered;
};

}  // namespace tamis
