// Finished pages that later requests may start from. A page is found by the tokens it and all pages
// before it hold; tokens are compared on every hit, so a hash collision cannot give another's
// cache.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/paged_cache.h"

namespace tamis {

class PrefixCache {
 public:
  explicit PrefixCache(PagedCache& cache) : cache_(cache) {}
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Gives `sequence` (empty) the longest run of kept pages that `tokens` begins with, at most
  // max_tokens tokens. Returns the number of tokens.
  int64_t match(std::span<const int32_t> tokens, int64_t max_tokens, CachedSequence& sequence);

  // Keeps the full pages of a sequence that holds `tokens`.
  void insert(std::span<const int32_t> tokens, const CachedSequence& sequence);

  // Gives up pages that nobody else uses, least recently used first, until `pages` are free in the
  // pool or none is left to give.
  void make_room(int64_t pages);

  int64_t kept_pages() const { return static_cast<int64_t>(nodes_.size()); }

 private:
  using PageTokens = std::array<int32_t, kPageTokens>;
  struct Node {
    int32_t page;
    uint64_t parent;
    PageTokens tokens;
    std::list<uint64_t>::iterator recent;
  };
  const Node* find(uint64_t key, uint64_t parent, std::span<const int32_t> tokens) const;
  void touch(const std::vector<uint64_t>& chain);

  PagedCache& cache_;
  std::unordered_map<uint64_t, Node> nodes_;
  std::list<uint64_t> recent_;  // most recently used first
};

}  // namespace tamis
