#include "engine/prefix_cache.h"

#include <algorithm>

namespace tamis {
namespace {

constexpr uint64_t kRoot = 0x5461'6D69'73ULL;

uint64_t chain_key(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t h = parent;
  for (const int32_t t : tokens) {
    h = (h ^ static_cast<uint32_t>(t)) * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 29;
  }
  return h;
}

std::span<const int32_t> page_of(std::span<const int32_t> tokens, int64_t page) {
  return tokens.subspan(static_cast<size_t>(page * kPageTokens), kPageTokens);
}

}  // namespace

PrefixCache::~PrefixCache() {
  for (const auto& [key, node] : nodes_) cache_.release_page(node.page);
}

const PrefixCache::Node* PrefixCache::find(uint64_t key, uint64_t parent,
                                           std::span<const int32_t> tokens) const {
  const auto it = nodes_.find(key);
  if (it == nodes_.end() || it->second.parent != parent) return nullptr;
  return std::equal(tokens.begin(), tokens.end(), it->second.tokens.begin()) ? &it->second
                                                                             : nullptr;
}

int64_t PrefixCache::match(std::span<const int32_t> tokens, int64_t max_tokens,
                           CachedSequence& sequence) {
  const int64_t pages =
      std::min<int64_t>(static_cast<int64_t>(tokens.size()), max_tokens) / kPageTokens;
  uint64_t parent = kRoot;
  std::vector<uint64_t> chain;
  for (int64_t p = 0; p < pages; ++p) {
    const auto part = page_of(tokens, p);
    const uint64_t key = chain_key(parent, part);
    const Node* node = find(key, parent, part);
    if (node == nullptr) break;
    cache_.retain(node->page);
    sequence.pages.push_back(node->page);
    chain.push_back(key);
    parent = key;
  }
  touch(chain);
  sequence.length = static_cast<int64_t>(sequence.pages.size()) * kPageTokens;
  return sequence.length;
}

void PrefixCache::insert(std::span<const int32_t> tokens, const CachedSequence& sequence) {
  const int64_t pages =
      std::min<int64_t>(static_cast<int64_t>(tokens.size()), sequence.length) / kPageTokens;
  uint64_t parent = kRoot;
  std::vector<uint64_t> chain;
  for (int64_t p = 0; p < pages; ++p) {
    const auto part = page_of(tokens, p);
    const uint64_t key = chain_key(parent, part);
    const auto it = nodes_.find(key);
    if (it == nodes_.end()) {
      Node node{sequence.pages[static_cast<size_t>(p)], parent, {}, {}};
      std::copy(part.begin(), part.end(), node.tokens.begin());
      recent_.push_front(key);
      node.recent = recent_.begin();
      cache_.retain(node.page);
      nodes_.emplace(key, node);
    } else if (find(key, parent, part) == nullptr) {
      break;  // another chain has this hash: its page stays, ours is not kept
    }
    chain.push_back(key);
    parent = key;
  }
  touch(chain);
}

// The last page first, so that a page is never younger than the pages it depends on.
void PrefixCache::touch(const std::vector<uint64_t>& chain) {
  for (auto key = chain.rbegin(); key != chain.rend(); ++key) {
    recent_.splice(recent_.begin(), recent_, nodes_.at(*key).recent);
  }
}

void PrefixCache::make_room(int64_t pages) {
  auto it = recent_.end();
  while (cache_.free_pages() < pages && it != recent_.begin()) {
    --it;
    const auto node = nodes_.find(*it);
    if (cache_.references(node->second.page) != 1) continue;
    cache_.release_page(node->second.page);
    nodes_.erase(node);
    it = recent_.erase(it);
  }
}

}  // namespace tamis
