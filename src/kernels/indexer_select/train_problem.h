// What tests of training operations share: sequences of several lengths, and values whose products
// are exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace tamis {

// Where tokens stand if sequences of 1, 8, 27, .. tokens follow each other, and rows of a selection
// that stay in their sequence.
struct Ragged {
  explicit Ragged(int64_t tokens) {
    for (int64_t side = 1; static_cast<int64_t>(position.size()) < tokens; ++side) {
      for (int64_t t = 0; t < side * side * side; ++t) {
        if (static_cast<int64_t>(position.size()) == tokens) break;
        position.push_back(static_cast<int32_t>(t));
        longest = std::max(longest, t + 1);
      }
    }
  }
  // Selections of each sequence alone, as rows of the batch.
  template <typename Select>
  std::vector<int32_t> rows(const Select& select) const {
    std::vector<int32_t> all;
    for (size_t begin = 0, end = 0; begin < position.size(); begin = end) {
      for (end = begin + 1; end < position.size() && position[end] > 0;) ++end;
      for (const int32_t s :
           select(static_cast<int64_t>(begin), static_cast<int64_t>(end - begin))) {
        all.push_back(s < 0 ? s : s + static_cast<int32_t>(begin));
      }
    }
    return all;
  }
  std::vector<int32_t> position;
  int64_t longest = 0;
};

// Quarters: their products and sums are exact, so a product's sign is the reference's, and many are
// exactly 0.
inline std::vector<float> quarters(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 9) - 4) / 4;
  return x;
}

struct IndexShape {
  int64_t heads, dim;
};

constexpr IndexShape kIndexShapes[] = {{4, 128}, {1, 20}, {3, 7}, {64, 32}};

}  // namespace tamis
