// The intermediate results of one forward pass. Buffers grow to the largest batch seen and stay, so
// a decode loop allocates nothing after its first step.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/linear/linear.h"
#include "kernels/rope/rope.h"
#include "kernels/token_ops/token_ops.h"
#include "model/place.h"
#include "model/step_graphs.h"
#include "tensor/cuda/device.h"

namespace tamis {

// Host memory, or device memory while its place names a device.
template <typename T>
class GrowBuffer {
 public:
  explicit GrowBuffer(Place& place) : place_(place) {}

  // At least n elements; earlier contents are lost when it grows.
  T* get(int64_t n) {
    if (place_.device == nullptr) {
      if (static_cast<int64_t>(host_.size()) < n) host_.resize(static_cast<size_t>(n));
    } else if (const auto bytes = n * static_cast<int64_t>(sizeof(T)); on_device_.bytes() < bytes) {
      on_device_ = DeviceBuffer();  // first: both together may not fit
      on_device_ = DeviceBuffer(*place_.device, bytes + bytes / 4, "activations");
      ++place_.moves;
    }
    return data();
  }
  T* data() {
    return place_.device == nullptr ? host_.data() : reinterpret_cast<T*>(on_device_.data());
  }

 private:
  Place& place_;
  std::vector<T> host_;
  DeviceBuffer on_device_;
};

struct Activations {
  Activations() = default;
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  Place place;  // of the forward pass
  using Floats = GrowBuffer<float>;
  // Residual stream. `x` is the stream before the last half-block's output `delta` is added: the
  // next norm adds the two, as the official code does.
  Floats x{place}, delta{place}, normed{place};
  Floats cos{place}, sin{place};
  // A device's table of positions 0 .. rope_positions - 1.
  Floats rope_cos{place}, rope_sin{place};
  int64_t rope_positions = 0;
  // MLA: names of the paper.
  Floats q_lora{place}, q{place}, kv_a{place}, c_kv{place}, q_latent{place}, o_latent{place},
      o{place}, o_all{place};
  Floats k_expanded{place}, kv_expanded{place}, k_pe_expanded{place};  // expanded (MHA) form
  // Indexer.
  Floats index_q{place}, index_k{place}, index_w{place}, index_scores{place};
  GrowBuffer<int32_t> topk{place};
  GrowBuffer<uint8_t> has_nan{place};
  // FFN.
  Floats router{place}, expert_weights{place}, expert_rows{place}, gate{place}, up{place},
      down{place}, shared_gate{place}, shared_up{place}, shared_all{place}, shared_down{place};
  GrowBuffer<int32_t> expert_ids{place}, expert_row_of{place};
  GrowBuffer<int64_t> expert_offsets{place};
  std::vector<LinearArgs> linears, beside;  // the products of one parallel loop
  std::vector<RopeArgs> ropes;
  std::vector<TokenStep> waiting;            // for the next norm
  std::vector<TokenStep> entry_steps;        // between attention's first products and the others
  std::optional<CheckFiniteArgs> unchecked;  // what a layer gave, until the next one's norms
  bool delta_is_zero = false;                // before the first layer, where nothing has to round x
  // Multi-token prediction.
  Floats mtp_embedding{place}, mtp_hidden{place}, mtp_joined{place};
  // A batch where a device reads it, and its results there (staging.h).
  GrowBuffer<std::byte> staged{place};
  PinnedBuffer pinned, pinned_results;
  StepGraphs graphs;
  Floats results{place};
  std::vector<std::byte> shown;  // what observers are given of device memory
  // Head, and the part of an output that one of several ranks computes.
  Floats final_rows{place}, part{place}, gathered{place};
};

}  // namespace tamis
