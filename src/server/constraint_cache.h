// Constraints that were compiled, for the requests that ask for the same again.
//
//   ConstraintCache cache(trie);
//   request.constraint = cache.get(spec);   // null if the spec holds to nothing
//
// Threads share it. What was not asked for longest is given up when there are more than a number of
// them, or when they hold too many bytes; a request keeps its own.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "text/grammar/constraint.h"

namespace tamis::server {

class ConstraintCache {
 public:
  struct Limits {
    size_t count = 256;
    int64_t bytes = 64 << 20;
  };
  explicit ConstraintCache(std::shared_ptr<const TokenTrie> trie);
  ConstraintCache(std::shared_ptr<const TokenTrie> trie, Limits limits);

  // Compiles on the calling thread, at most once a specification. InputError as
  // compile_constraint().
  std::shared_ptr<Constraint> get(const ConstraintSpec& spec);

  struct Stats {
    int64_t hits = 0, misses = 0, kept = 0, bytes = 0;
  };
  Stats stats() const;

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<Constraint> constraint;
  };
  std::shared_ptr<Constraint> find(const std::string& key);
  void shrink();

  std::shared_ptr<const TokenTrie> trie_;
  Limits limits_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;                                       // the last used first
  std::map<std::string_view, std::list<Entry>::iterator> by_key_;  // of the entries' own keys
  int64_t hits_ = 0, misses_ = 0;
};

}  // namespace tamis::server
