// What a token's attention has read, and sums of it for metrics (selection_probe.h finds out).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tamis {

struct ReadPosition {
  int32_t position = 0;
  std::vector<float> share;  // of the attention in each layer, mean of its heads: 0 to 1
  std::vector<float> dense;  // what dense attention would give it, in each layer; 0 below kLeast
  static constexpr float kLeast = 0.0005F;
};

// Of one token, most read (over all layers) first; ties by lower position.
struct TokenReads {
  int32_t position = -1;  // of the token whose attention it is; -1: nobody asked
  std::vector<ReadPosition> top;
  std::vector<float> kept;  // by layer, the part of dense attention that the selection holds
};

// Sums over the tokens that were looked at, for metrics.
struct SelectionStats {
  struct Layer {
    int64_t tokens = 0;
    double kept = 0;  // sum of the shares of dense attention that the selections hold
  };
  std::vector<Layer> layers;
  // Selected positions by their distance: [i] counts 2^(i-1) < distance <= 2^i, [0] the distances
  // 0 and 1, the last one all that are further.
  static constexpr size_t kDistances = 20;
  std::array<int64_t, kDistances> distance{};
  double distance_sum = 0;
};

}  // namespace tamis
