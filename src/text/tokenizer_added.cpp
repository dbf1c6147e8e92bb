#include "text/tokenizer_added.h"

namespace tamis {
namespace {

uint64_t edge(uint32_t node, char byte) {
  return uint64_t{node} << 8 | static_cast<unsigned char>(byte);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher() : ends_{-1} {}

void AddedTokenMatcher::add(std::string_view content, int32_t id) {
  starts_[static_cast<unsigned char>(content[0])] = true;
  uint32_t node = 0;
  for (const char byte : content) {
    const auto [it, fresh] = edges_.try_emplace(edge(node, byte), ends_.size());
    if (fresh) ends_.push_back(-1);
    node = it->second;
  }
  ends_[node] = id;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::find(std::string_view text,
                                                                size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    Match best{begin, begin, -1};
    uint32_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      const auto it = edges_.find(edge(node, text[i]));
      if (it == edges_.end()) break;
      node = it->second;
      if (ends_[node] >= 0) best = {begin, i + 1, ends_[node]};
    }
    if (best.id >= 0) return best;
  }
  return std::nullopt;
}

}  // namespace tamis
