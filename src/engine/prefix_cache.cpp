#include "engine/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <random>

namespace tamis {
namespace {

// Copying a page for fewer tokens than this costs more than computing them.
constexpr int64_t kMinShared = 8;
// Children of one node that a search for a page in common looks at, newest first.
constexpr size_t kMaxCandidates = 32;

uint64_t random_seed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

int64_t shared_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

int64_t pages_of(const CachedSequence& s) { return static_cast<int64_t>(s.pages.size()); }

}  // namespace

PrefixCache::PrefixCache(PagedCache& cache, uint64_t hash_mask)
    : cache_(cache), seed_(random_seed()), hash_mask_(hash_mask) {}

PrefixCache::~PrefixCache() {
  for (const auto& [hash, node] : nodes_) cache_.forget(node->page);
}

PrefixCache::Node& PrefixCache::root(const std::string& name) {
  auto& top = roots_[name];
  if (top == nullptr) {
    top = std::make_unique<Node>();
    top->name = name;
    top->hash = XXH3_64bits_withSeed(name.data(), name.size(), seed_) & hash_mask_;
  }
  return *top;
}

uint64_t PrefixCache::hash_of(const Node* parent, Tokens tokens) const {
  // Only full pages are searched by hash, so that the parent's own hash stands for all above it.
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), seed_ ^ parent->hash) &
         hash_mask_;
}

PrefixCache::Node* PrefixCache::find(const Node* parent, Tokens tokens, uint64_t hash) const {
  const auto [begin, end] = nodes_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    Node* n = it->second.get();
    if (n->parent == parent && n->count == static_cast<int32_t>(tokens.size()) &&
        std::equal(tokens.begin(), tokens.end(), n->tokens.begin())) {
      return n;
    }
  }
  return nullptr;
}

PrefixCache::Node* PrefixCache::nearest(const Node& parent, Tokens tokens, int64_t& shared) const {
  Node* best = nullptr;
  shared = kMinShared - 1;
  const size_t n = parent.children.size();
  for (size_t i = n; i > n - std::min(n, kMaxCandidates); --i) {
    Node* child = parent.children[i - 1];
    const int64_t same =
        shared_length(tokens, Tokens(child->tokens).first(static_cast<size_t>(child->count)));
    if (same > shared) {
      shared = same;
      best = child;
    }
  }
  return best;
}

int64_t PrefixCache::match(const std::string& root, Tokens tokens, int64_t max_tokens,
                           CachedSequence& sequence) {
  const auto found = roots_.find(root);
  if (found == roots_.end()) return 0;
  tokens = tokens.first(std::min(tokens.size(), static_cast<size_t>(max_tokens)));
  Node* at = found->second.get();
  CachedSequence kept;
  while (tokens.size() >= kPageTokens) {
    const Tokens page = tokens.first(kPageTokens);
    Node* next = find(at, page, hash_of(at, page));
    if (next == nullptr) break;
    at = next;
    kept.pages.push_back(at->page);
    kept.length += kPageTokens;
    tokens = tokens.subspan(kPageTokens);
  }
  cache_.fork(kept, kept.length, sequence);  // held now, so that making room leaves them
  int64_t shared = 0;
  Node* started = nearest(*at, tokens, shared);
  if (started != nullptr) {
    touch(started);
    at = started;
    kept.pages.push_back(started->page);
    // The page itself must not go while room for its copy is made.
    CachedSequence guard;
    cache_.fork(kept, pages_of(kept) * kPageTokens, guard);
    make_room(1);
    CachedSequence copy;
    if (cache_.fork(kept, kept.length + shared, copy)) {
      ++stats_.copied_pages;
      std::swap(sequence, copy);
    }
    cache_.release(copy);
    cache_.release(guard);
  }
  touch(at);
  return sequence.length;
}

void PrefixCache::count(int64_t tokens, int64_t hit) {
  ++stats_.lookups;
  stats_.tokens += tokens;
  stats_.hit_tokens += hit;
}

PrefixCache::Node* PrefixCache::add(Node& parent, Tokens tokens, int32_t page) {
  auto node = std::make_unique<Node>();
  Node* n = node.get();
  n->parent = &parent;
  n->page = page;
  n->count = static_cast<int32_t>(tokens.size());
  n->hash = hash_of(&parent, tokens);
  std::copy(tokens.begin(), tokens.end(), n->tokens.begin());
  recent_.push_front(n);
  n->recent = recent_.begin();
  parent.children.push_back(n);
  cache_.keep(page);
  nodes_.emplace(n->hash, std::move(node));
  return n;
}

// A started page, unless a kept one begins with it.
bool PrefixCache::add_started(Node& parent, Tokens tokens, int32_t page) {
  int64_t shared = 0;
  if (static_cast<int64_t>(tokens.size()) < kMinShared || cache_.kept(page)) return false;
  if (nearest(parent, tokens, shared) != nullptr && shared == static_cast<int64_t>(tokens.size())) {
    return false;
  }
  add(parent, tokens, page);
  return true;
}

void PrefixCache::insert(const std::string& root, Tokens tokens, const CachedSequence& sequence,
                         bool whole) {
  tokens = tokens.first(std::min(tokens.size(), static_cast<size_t>(sequence.length)));
  if (static_cast<int64_t>(tokens.size()) < (whole ? kMinShared : kPageTokens)) return;
  Node* const top = &this->root(root);
  Node* at = top;
  size_t p = 0;
  for (; tokens.size() >= kPageTokens; ++p, tokens = tokens.subspan(kPageTokens)) {
    const Tokens page = tokens.first(kPageTokens);
    Node* next = find(at, page, hash_of(at, page));
    if (next == nullptr) {
      next = add(*at, page, sequence.pages[p]);
      drop_continued(*at, page);
    }
    at = next;
  }
  if (whole && !tokens.empty() && add_started(*at, tokens, sequence.pages[p])) {
    at = at->children.back();
  }
  touch(at);
  if (top->children.empty()) roots_.erase(root);
}

// A started page that a full one continues has nothing more to give.
void PrefixCache::drop_continued(const Node& parent, Tokens page) {
  for (size_t i = parent.children.size(), seen = 0; i > 0 && seen < kMaxCandidates; --i, ++seen) {
    Node* n = parent.children[i - 1];
    if (n->count < kPageTokens && cache_.references(n->page) == 1 &&
        std::equal(n->tokens.begin(), n->tokens.begin() + n->count, page.begin())) {
      remove(n);
    }
  }
}

// From the leaf to the root, so that no node is younger than one it hangs from.
void PrefixCache::touch(Node* leaf) {
  for (Node* n = leaf; n->parent != nullptr; n = n->parent) {
    recent_.splice(recent_.begin(), recent_, n->recent);
  }
}

void PrefixCache::remove(Node* node) {
  Node* parent = node->parent;
  std::erase(parent->children, node);
  if (parent->parent == nullptr && parent->children.empty()) roots_.erase(parent->name);
  recent_.erase(node->recent);
  cache_.forget(node->page);
  const auto [begin, end] = nodes_.equal_range(node->hash);
  nodes_.erase(std::find_if(begin, end, [node](const auto& e) { return e.second.get() == node; }));
}

void PrefixCache::make_room(int64_t pages) {
  auto it = recent_.end();
  while (cache_.free_pages() < pages && cache_.cached_pages() > 0 && it != recent_.begin()) {
    Node* node = *--it;
    if (cache_.references(node->page) != 1 || !node->children.empty()) continue;
    ++it;
    remove(node);
    ++stats_.evictions;
  }
}

std::vector<int32_t> PrefixCache::kept() const {
  std::vector<int32_t> pages;
  for (const auto& [hash, node] : nodes_) pages.push_back(node->page);
  return pages;
}

}  // namespace tamis
