// What an answer may look like, as a grammar over bytes; and the automaton that follows it.
//
//   GrammarBuilder b;                                   // regex.h, json_schema.h, tool_grammar.h
//   auto grammar = b.finish(b.bytes("yes"));            // fill one
//
// A grammar is a set of rules that may call each other. The automaton keeps a set of places, each
// with the rules to come back to; sets that were met before are found again, so that following a
// text is a table look-up (automaton.h). A symbol is a byte, or a marker of the chat format that
// the tokenizer has as one token: nobody can spell a marker in bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tamis {

struct GrammarNode {
  enum class Kind : uint8_t {
    kRange,   // a symbol in [low, high], then next
    kSplit,   // any of targets
    kCall,    // the rule `target`, then next
    kRepeat,  // target min to max times, then next
    kEnd,     // of a rule, or of what a kRepeat repeats
  };
  Kind kind = Kind::kEnd;
  int32_t low = 0, high = 0;  // kRange: symbols; kRepeat: min and max
  int32_t next = -1, target = -1;
  std::vector<int32_t> targets;
};

// Immutable. Built by a GrammarBuilder.
struct Grammar {
  // Calls within calls; what would need more to come to an end is not begun.
  static constexpr int32_t kMaxDepth = 96;

  std::vector<GrammarNode> nodes;
  struct Rule {
    int32_t entry = -1;
    int32_t min_depth = 0;  // calls within calls that its shortest text needs
  };
  std::vector<Rule> rules;       // the first is the whole text
  std::vector<int32_t> markers;  // symbol 256 + i is the token markers[i]
};

class GrammarBuilder {
 public:
  static constexpr int32_t kUnbounded = INT32_MAX;

  // An expression; valid for the builder that made it.
  struct Expr {
    int32_t id = 0;
  };

  GrammarBuilder();

  Expr empty() const { return {0}; }
  Expr bytes(std::string_view text);
  Expr range(int32_t low, int32_t high);
  Expr sequence(std::vector<Expr> parts);
  Expr any_of(std::vector<Expr> parts);
  Expr optional(Expr e) { return any_of({e, empty()}); }
  Expr star(Expr e) { return repeat(e, 0, kUnbounded); }
  // InputError where nested repetitions multiply past a limit.
  Expr repeat(Expr e, int32_t min, int32_t max);
  // Any code point of the ranges, in UTF-8; surrogates are left out.
  struct CodeRange {
    uint32_t low, high;
  };
  Expr code_points(const std::vector<CodeRange>& ranges);
  // A marker, as the one token that it is.
  Expr marker(int32_t token);
  // Text without `end` (single symbols), then `end`, then `then`. The text may also stop before
  // `end` comes if `may_stop`. Of the markers of `end` only the whole of it can make use.
  Expr until(const std::vector<int32_t>& end, Expr then, bool may_stop);
  int32_t marker_symbol(int32_t token);

  // A rule to be defined once, before or after it is called.
  int32_t declare();
  void define(int32_t rule, Expr body);
  Expr call(int32_t rule);
  Expr rule(Expr body);  // declares, defines, calls
  int64_t rules() const { return static_cast<int64_t>(bodies_.size()); }

  // InputError if a rule has no finite text, or calls itself without a symbol in between, or
  // everything together is too large.
  std::shared_ptr<const Grammar> finish(Expr whole);

 private:
  enum class Op : uint8_t { kEmpty, kRange, kSequence, kAnyOf, kRepeat, kStar, kCall };
  struct Item {
    Op op = Op::kEmpty;
    int32_t low = 0, high = 0;  // range, repeat; call: the rule in low
    std::vector<int32_t> parts;
    int64_t weight = 1;  // product of the bounded repetitions inside
  };
  Expr add(Item item);
  void utf8_ranges(uint32_t low, uint32_t high, std::vector<Expr>& out);
  int32_t emit(int32_t expr, int32_t next);
  int32_t node(GrammarNode n);
  int32_t body_of(int32_t rule) const { return bodies_[static_cast<size_t>(rule)]; }
  std::vector<uint8_t> nullable_items() const;
  struct Depths {
    int32_t inside = 0, last = 0;
  };
  Depths depth(const Item& item, const std::vector<Depths>& of) const;
  std::vector<int32_t> first_calls(int32_t rule, const std::vector<uint8_t>& nullable,
                                   std::vector<int32_t>& seen) const;
  void check_depth();
  void check_recursion() const;

  std::vector<Item> items_;
  std::vector<int32_t> bodies_;  // of rules; -1: declared only
  std::shared_ptr<Grammar> grammar_;
};

}  // namespace tamis
