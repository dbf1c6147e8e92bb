// Pages of finished text that later requests may start from.
//
// Kept text is a tree: a node is one page of tokens after all the pages above it. Nodes are found
// by a hash that is seeded anew in every process, and their tokens and parent are compared, so that
// nobody can make one text answer with another's cache. A root is a name (tenant and way of
// attention): texts under different roots never meet.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/paged_cache.h"

namespace tamis {

struct PrefixStats {
  int64_t lookups = 0;       // sequences that asked
  int64_t tokens = 0;        // of their text
  int64_t hit_tokens = 0;    // of these, found
  int64_t copied_pages = 0;  // started pages copied on a hit
  int64_t evictions = 0;     // pages given up for room
};

// Where kept prefixes go between two runs of the program.
struct PrefixFile {
  std::string path;
  uint64_t made_by = 0;           // everything that the bits of a page depend on, and its tenants
  int64_t max_bytes = INT64_MAX;  // the least recently used pages are left out
};
struct PrefixLoad {
  int64_t pages = 0;
  std::string trouble;  // why not all of the file was taken; empty: all, or there is none
};

class PrefixCache {
 public:
  // Only the bits of `hash_mask` are used of a hash: tests make all of them collide with 0.
  explicit PrefixCache(PagedCache& cache, uint64_t hash_mask = ~uint64_t{0});
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Gives `sequence` (empty) the longest kept text that `tokens` begins with, at most max_tokens.
  // Full pages are shared; of a page that agrees in part, or is not full, a copy is made. Returns
  // the number of tokens.
  int64_t match(const std::string& root, std::span<const int32_t> tokens, int64_t max_tokens,
                CachedSequence& sequence);

  // Counts a match that was used in stats().
  void count(int64_t tokens, int64_t hit);

  // Keeps the pages of a sequence that holds `tokens`; the started one at the end only if `whole`,
  // which the caller says when the sequence will write no more.
  void insert(const std::string& root, std::span<const int32_t> tokens,
              const CachedSequence& sequence, bool whole);

  // Gives up pages that nobody uses, least recently used first and leaves before what they hang
  // from, until `pages` are free in the pool or none is left to give.
  void make_room(int64_t pages);

  // Writes what is kept, readable for the owner alone, whole or not at all; returns the pages. The
  // file holds the tokens of what was asked and answered. DeviceError if it cannot be written.
  int64_t save(const PrefixFile& file) const;
  // Takes what a file holds, as far as free pages reach; for a cache that has kept nothing yet. A
  // file of another maker is left out as a whole, a damaged one from the damage on.
  PrefixLoad load(const PrefixFile& file);

  int64_t kept_pages() const { return static_cast<int64_t>(nodes_.size()); }
  std::vector<int32_t> kept() const;
  const PrefixStats& stats() const { return stats_; }

 private:
  struct Node {
    Node* parent = nullptr;  // null for a root
    int32_t page = -1;
    int32_t count = 0;  // tokens; less than a page only in a leaf
    uint64_t hash = 0;
    std::array<int32_t, kPageTokens> tokens{};
    std::vector<Node*> children;        // oldest first
    std::list<Node*>::iterator recent;  // not of a root
    std::string name;                   // of a root
  };
  using Tokens = std::span<const int32_t>;

  Node& root(const std::string& name);
  uint64_t hash_of(const Node* parent, Tokens tokens) const;
  Node* find(const Node* parent, Tokens tokens, uint64_t hash) const;
  // The child that shares the most tokens, at least kMinShared; sets `shared`.
  Node* nearest(const Node& parent, Tokens tokens, int64_t& shared) const;
  bool add_started(Node& parent, Tokens tokens, int32_t page);
  Node* add(Node& parent, Tokens tokens, int32_t page);
  void drop_continued(const Node& parent, Tokens page);
  void remove(Node* node);
  void touch(Node* leaf);

  PagedCache& cache_;
  uint64_t seed_, hash_mask_;
  std::map<std::string, std::unique_ptr<Node>> roots_;
  std::unordered_multimap<uint64_t, std::unique_ptr<Node>> nodes_;
  std::list<Node*> recent_;  // most recently used first; a node never before its parent
  PrefixStats stats_;
};

}  // namespace tamis
