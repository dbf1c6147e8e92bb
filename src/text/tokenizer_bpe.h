// Byte-pair encoding of one word: starting from its bytes, the adjacent pair of lowest rank is
// merged, leftmost first, until no pair of the word has a rank.
//
// Short words are scanned; long ones use a heap of pairs over a linked list, O(n log n) in their
// length, without recursion.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tamis {

class BytePairEncoder {
 public:
  // The merge of rank i is element i. `added` marks a result that is an added token: plain text
  // must not become one.
  struct Merge {
    int32_t left, right, result;
    bool added;
  };

  // Buffers of encode(), reused between calls; one per thread. `steps` counts the inspected pairs
  // and heap operations, so that a test can show the cost to be linear without a clock.
  struct Scratch {
    std::vector<int32_t> ids, previous, next;
    std::vector<uint32_t> ranks;  // of the pair that starts at a position
    std::vector<uint64_t> heap;   // rank << 32 | position
    int64_t steps = 0;
  };

  BytePairEncoder() = default;
  // Left and right ids lie in [0, id_count). If a pair is given twice the later one counts, as in
  // the `tokenizers` library.
  BytePairEncoder(const std::array<int32_t, 256>& byte_ids, std::vector<Merge> merges,
                  int64_t id_count);

  // Appends the ids of `word` (any bytes, fewer than 2^31) to out. avoid_added: merges whose result
  // is an added token are not made.
  void encode(std::string_view word, bool avoid_added, Scratch& scratch,
              std::vector<int32_t>& out) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  struct Pair {
    int32_t right;
    uint32_t rank;
  };

  uint32_t rank_of(int32_t left, int32_t right, bool avoid_added) const;
  void merge_short(bool avoid_added, Scratch& s) const;
  void merge_long(bool avoid_added, Scratch& s) const;
  void refresh(int32_t pos, bool avoid_added, Scratch& s) const;

  std::array<int32_t, 256> byte_ids_{};
  std::vector<Merge> merges_;
  std::vector<uint32_t> first_pair_;  // pairs_ of left id i: [first_pair_[i], first_pair_[i+1])
  std::vector<Pair> pairs_;           // ascending by right id: no hash that a file could flood
};

}  // namespace tamis
