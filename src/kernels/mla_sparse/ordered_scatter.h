// Adds gathered rows back to where they came from, in a fixed order and without atomics: an
// inverted index says for every position which (token, slot) pairs read it, tokens ascending.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tamis {

class InvertedIndex {
 public:
  // indices [tokens, k], -1 past the end of a row; positions in [0, positions).
  InvertedIndex(const int32_t* indices, int64_t tokens, int64_t k, int64_t positions)
      : begin_(static_cast<size_t>(positions + 1)) {
    for (int64_t i = 0; i < tokens * k; ++i) {
      if (indices[i] >= 0) ++begin_[static_cast<size_t>(indices[i]) + 1];
    }
    for (size_t s = 1; s < begin_.size(); ++s) begin_[s] += begin_[s - 1];
    pairs_.resize(static_cast<size_t>(begin_.back()));
    std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
    for (int64_t i = 0; i < tokens * k; ++i) {
      if (indices[i] < 0) continue;
      pairs_[static_cast<size_t>(next[static_cast<size_t>(indices[i])]++)] = i;
    }
  }

  int64_t positions() const { return static_cast<int64_t>(begin_.size()) - 1; }

  // visit(pair) for every pair t * k + slot that selected this position, ascending.
  template <typename Visit>
  void for_each(int64_t position, const Visit& visit) const {
    const auto s = static_cast<size_t>(position);
    for (int64_t i = begin_[s]; i < begin_[s + 1]; ++i) visit(pairs_[static_cast<size_t>(i)]);
  }

 private:
  std::vector<int64_t> begin_, pairs_;
};

}  // namespace tamis
