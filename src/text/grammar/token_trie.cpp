#include "text/grammar/token_trie.h"

#include <algorithm>

namespace tamis {

TokenTrie::TokenTrie(const Tokenizer& tokenizer, int64_t vocab_size)
    : tokenizer_(tokenizer),
      vocab_size_(vocab_size),
      same_(static_cast<size_t>(vocab_size), -1),
      bytes_(static_cast<size_t>(vocab_size)) {
  std::vector<int32_t> order;
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer.vocab_size()); ++id) {
    if (!tokenizer.is_ordinary(id)) continue;
    std::string& b = bytes_[static_cast<size_t>(id)];
    b = tokenizer.token_bytes(id);
    if (b.empty()) continue;
    max_bytes_ = std::max(max_bytes_, static_cast<int32_t>(b.size()));
    order.push_back(id);
  }
  const auto bytes_of = [this](int32_t id) -> const std::string& {
    return bytes_[static_cast<size_t>(id)];
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return bytes_of(a) != bytes_of(b) ? bytes_of(a) < bytes_of(b) : a < b;
  });
  std::vector<int32_t> path;  // nodes of the last token, one a byte
  std::string last;
  for (const int32_t id : order) {
    const std::string& b = bytes_of(id);
    if (b == last) {
      same_[static_cast<size_t>(id)] = nodes_[static_cast<size_t>(path.back())].token;
      nodes_[static_cast<size_t>(path.back())].token = id;
      continue;
    }
    const auto common = static_cast<size_t>(
        std::mismatch(last.begin(), last.end(), b.begin(), b.end()).first - last.begin());
    for (; path.size() > common; path.pop_back()) {
      nodes_[static_cast<size_t>(path.back())].skip = static_cast<int32_t>(nodes_.size());
    }
    for (size_t i = common; i < b.size(); ++i) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({static_cast<int32_t>(i) + 1, 0, -1, static_cast<uint8_t>(b[i])});
    }
    nodes_.back().token = id;
    last = b;
  }
  for (const int32_t n : path) {
    nodes_[static_cast<size_t>(n)].skip = static_cast<int32_t>(nodes_.size());
  }
}

std::optional<int32_t> TokenTrie::added(std::string_view text) const {
  const std::optional<int32_t> id = tokenizer_.token_to_id(text);
  if (!id || *id >= vocab_size_ || tokenizer_.is_ordinary(*id)) return std::nullopt;
  return id;
}

}  // namespace tamis
