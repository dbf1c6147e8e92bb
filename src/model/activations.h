// The intermediate results of one forward pass. Buffers grow to the largest batch seen and stay, so
// a decode loop allocates nothing after its first step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/linear/linear.h"
#include "tensor/cuda/device.h"

namespace tamis {

// Host memory, or device memory while the DeviceContext that it was made with is not null.
template <typename T>
class GrowBuffer {
 public:
  explicit GrowBuffer(DeviceContext* const& device) : device_(device) {}

  // At least n elements; earlier contents are lost when it grows.
  T* get(int64_t n) {
    if (device_ == nullptr) {
      if (static_cast<int64_t>(host_.size()) < n) host_.resize(static_cast<size_t>(n));
    } else if (const auto bytes = n * static_cast<int64_t>(sizeof(T)); on_device_.bytes() < bytes) {
      on_device_ = DeviceBuffer();  // first: both together may not fit
      on_device_ = DeviceBuffer(*device_, bytes + bytes / 4, "activations");
    }
    return data();
  }
  T* data() { return device_ == nullptr ? host_.data() : reinterpret_cast<T*>(on_device_.data()); }

 private:
  DeviceContext* const& device_;
  std::vector<T> host_;
  DeviceBuffer on_device_;
};

struct Activations {
  Activations() = default;
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  DeviceContext* device = nullptr;  // of the forward pass; null: the host
  using Floats = GrowBuffer<float>;
  // Residual stream. `x` is the stream before the last half-block's output `delta` is added: the
  // next norm adds the two, as the official code does.
  Floats x{device}, delta{device}, normed{device};
  Floats cos{device}, sin{device};
  // MLA: names of the paper.
  Floats q_lora{device}, q{device}, kv_a{device}, c_kv{device}, q_latent{device}, o_latent{device},
      o{device}, o_all{device};
  Floats k_expanded{device}, kv_expanded{device}, k_pe_expanded{device};  // expanded (MHA) form
  // Indexer.
  Floats index_q{device}, index_k{device}, index_w{device}, index_scores{device};
  GrowBuffer<int32_t> topk{device};
  GrowBuffer<uint8_t> has_nan{device};
  // FFN.
  Floats router{device}, expert_weights{device}, expert_rows{device}, gate{device}, up{device},
      down{device}, shared_gate{device}, shared_up{device}, shared_all{device}, shared_down{device};
  GrowBuffer<int32_t> expert_ids{device}, expert_row_of{device};
  GrowBuffer<int64_t> expert_offsets{device};
  std::vector<LinearArgs> linears, beside;  // the products of one parallel loop
  std::vector<float> host_cos, host_sin;
  // Multi-token prediction.
  Floats mtp_embedding{device}, mtp_hidden{device}, mtp_joined{device};
  // A batch where a device reads it, and its results there (staging.h).
  GrowBuffer<std::byte> staged{device};
  PinnedBuffer pinned;
  Floats logits{device};
  GrowBuffer<int32_t> failed{device};
  std::vector<std::byte> shown;  // what observers are given of device memory
  // Head, and the part of an output that one of several ranks computes.
  Floats final_rows{device}, part{device}, gathered{device};
};

}  // namespace tamis
