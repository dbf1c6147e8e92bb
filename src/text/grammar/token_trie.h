// The bytes of all tokens of a vocabulary, as a tree: what is common to many tokens is looked at
// once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tamis {

class TokenTrie {
 public:
  // Added tokens have no bytes here: they come only as markers. vocab_size: of the model, which may
  // be more than the tokenizer's.
  TokenTrie(const Tokenizer& tokenizer, int64_t vocab_size);

  struct Node {
    int32_t depth = 0;  // bytes of the text that ends here
    int32_t skip = 0;   // the first node that does not begin with it
    int32_t token = -1;
    uint8_t byte = 0;
  };
  // In depth-first order.
  const std::vector<Node>& nodes() const { return nodes_; }
  // Another token with the same bytes, or -1.
  int32_t same_bytes(int32_t token) const { return same_[static_cast<size_t>(token)]; }
  const std::string& bytes(int32_t token) const { return bytes_[static_cast<size_t>(token)]; }
  std::optional<int32_t> added(std::string_view text) const;

  int64_t vocab_size() const { return vocab_size_; }
  int64_t words() const { return (vocab_size_ + 63) / 64; }
  int32_t max_bytes() const { return max_bytes_; }

 private:
  Tokenizer tokenizer_;
  int64_t vocab_size_;
  int32_t max_bytes_ = 0;
  std::vector<Node> nodes_;
  std::vector<int32_t> same_;
  std::vector<std::string> bytes_;
};

}  // namespace tamis
