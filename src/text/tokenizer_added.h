// Finds the added tokens of a tokenizer (special ones and others) in text: leftmost first, of those
// that start at one place the longest.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tamis {

class AddedTokenMatcher {
 public:
  struct Match {
    size_t begin, end;
    int32_t id;
  };

  AddedTokenMatcher();

  // content is not empty and not longer than 512 bytes, which bounds the time a character takes.
  void add(std::string_view content, int32_t id);

  // The first match at or after `from`.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  // A trie: edges from (node << 8 | byte), and the id that ends at a node, or -1.
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> ends_;
  std::array<bool, 256> starts_{};
};

}  // namespace tamis
