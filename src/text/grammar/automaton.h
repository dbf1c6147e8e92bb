// Follows a grammar through a text, and says which tokens may come next.
//
//   auto constraint = std::make_shared<Constraint>(grammar, vocabulary);   // shared, cached
//   Matcher matcher(constraint);                                           // one a request
//   matcher.allowed();  matcher.accept(id);  matcher.accepting();
//
// States and their masks are computed when they are first met, and shared by all requests with the
// same constraint. Their number is bounded: when the table is full, a new one is begun.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/grammar/grammar.h"
#include "text/grammar/token_trie.h"

namespace tamis {

// The lazily built table of one grammar over one vocabulary. Internally locked.
class GrammarTable;

class Constraint {
 public:
  Constraint(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie);
  ~Constraint();

  int64_t vocab_size() const { return trie_->vocab_size(); }

  // About what it holds now, for who keeps many. It grows while texts are followed.
  int64_t bytes() const;

 private:
  friend class Matcher;
  std::shared_ptr<GrammarTable> table();
  std::shared_ptr<GrammarTable> renew(const std::shared_ptr<GrammarTable>& full);

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  mutable std::mutex mutex_;
  std::shared_ptr<GrammarTable> table_;
};

class Matcher {
 public:
  explicit Matcher(std::shared_ptr<Constraint> constraint);

  // One bit a token, valid until the next call. InputError if the constraint turns out to be too
  // ambiguous to follow.
  std::span<const uint64_t> allowed();
  // False, and nothing changed, if the token may not come here.
  bool accept(int32_t token);
  // The text may end here.
  bool accepting() const;
  // And nothing else may follow.
  bool finished() const;

  // Undoes everything since a mark: for drafts that were not taken.
  int32_t mark() const { return state_; }
  void roll_back(int32_t mark) { state_ = mark; }
  // No mark will be asked for any more.
  void commit();

 private:
  std::shared_ptr<Constraint> constraint_;
  std::shared_ptr<GrammarTable> table_;
  int32_t state_ = 0;
};

}  // namespace tamis
