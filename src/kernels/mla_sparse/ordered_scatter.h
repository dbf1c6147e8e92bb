// Adds gathered rows back to where they came from, in a fixed order and without atomics: an
// inverted index says for every position which (token, slot) pairs read it, tokens ascending.
//
//   InvertedIndex index(positions);             // once for a sequence
//   index.build(indices, tokens, k);            // for each block of its tokens
//   for (i = 0; i < index.touched(); ++i) index.for_each(i, visit)
//
// Building takes time in the pairs of the block alone, so a sequence cut into blocks costs
// tokens * k and not blocks * positions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tamis {

class InvertedIndex {
 public:
  explicit InvertedIndex(int64_t positions) : rank_(static_cast<size_t>(positions), -1) {}

  // indices [tokens, k], -1 past the end of a row; positions in [0, positions).
  void build(const int32_t* indices, int64_t tokens, int64_t k) {
    for (const int32_t s : touched_) rank_[static_cast<size_t>(s)] = -1;
    touched_.clear();
    begin_.assign(1, 0);
    count(indices, tokens * k);
    for (size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
    pairs_.resize(static_cast<size_t>(begin_.back()));
    next_.assign(begin_.begin(), begin_.end() - 1);
    for (int64_t i = 0; i < tokens * k; ++i) {
      if (indices[i] < 0) continue;
      const auto at = static_cast<size_t>(rank_[static_cast<size_t>(indices[i])]);
      pairs_[static_cast<size_t>(next_[at]++)] = i;
    }
  }

  // Positions that some token of the block selected, and number i of them.
  int64_t touched() const { return static_cast<int64_t>(touched_.size()); }
  int64_t position(int64_t i) const { return touched_[static_cast<size_t>(i)]; }

  // visit(pair) for every pair t * k + slot that selected position(i), ascending.
  template <typename Visit>
  void for_each(int64_t i, const Visit& visit) const {
    const auto at = static_cast<size_t>(i);
    for (int64_t p = begin_[at]; p < begin_[at + 1]; ++p) visit(pairs_[static_cast<size_t>(p)]);
  }

 private:
  // begin_[rank + 1] = how often the position of that rank was selected.
  void count(const int32_t* indices, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
      if (indices[i] < 0) continue;
      int32_t& rank = rank_[static_cast<size_t>(indices[i])];
      if (rank < 0) {
        rank = static_cast<int32_t>(touched_.size());
        touched_.push_back(indices[i]);
        begin_.push_back(0);
      }
      ++begin_[static_cast<size_t>(rank) + 1];
    }
  }

  std::vector<int32_t> rank_;     // of a position among the touched ones, -1 if it is none
  std::vector<int32_t> touched_;  // in the order in which the pairs met them
  std::vector<int64_t> begin_, next_, pairs_;
};

}  // namespace tamis
