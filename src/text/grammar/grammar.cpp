#include "text/grammar/grammar.h"

#include <algorithm>

#include "base/error.h"

namespace tamis {
namespace {

constexpr size_t kMaxNodes = 100000;
constexpr int64_t kMaxWeight = 1000000;
constexpr int32_t kMaxRounds = 200;
constexpr int32_t kEndless = INT32_MAX / 2;

}  // namespace

GrammarBuilder::GrammarBuilder() : grammar_(std::make_shared<Grammar>()) {
  items_.push_back({});
  declare();
}

GrammarBuilder::Expr GrammarBuilder::add(Item item) {
  if (items_.size() >= kMaxNodes) throw InputError("the constraint is too large");
  for (const int32_t p : item.parts) {
    item.weight = std::max(item.weight, items_[static_cast<size_t>(p)].weight);
  }
  items_.push_back(std::move(item));
  return {static_cast<int32_t>(items_.size()) - 1};
}

GrammarBuilder::Expr GrammarBuilder::range(int32_t low, int32_t high) {
  return add({Op::kRange, low, high, {}, 1});
}

GrammarBuilder::Expr GrammarBuilder::bytes(std::string_view text) {
  std::vector<Expr> parts;
  for (const char c : text)
    parts.push_back(range(static_cast<uint8_t>(c), static_cast<uint8_t>(c)));
  return sequence(std::move(parts));
}

GrammarBuilder::Expr GrammarBuilder::sequence(std::vector<Expr> parts) {
  if (parts.size() == 1) return parts[0];
  Item item{Op::kSequence, 0, 0, {}, 1};
  for (const Expr e : parts) {
    if (e.id != 0) item.parts.push_back(e.id);
  }
  return item.parts.empty() ? empty() : add(std::move(item));
}

GrammarBuilder::Expr GrammarBuilder::any_of(std::vector<Expr> parts) {
  if (parts.size() == 1) return parts[0];
  Item item{Op::kAnyOf, 0, 0, {}, 1};
  for (const Expr e : parts) item.parts.push_back(e.id);
  return add(std::move(item));
}

GrammarBuilder::Expr GrammarBuilder::repeat(Expr e, int32_t min, int32_t max) {
  if (min > max)
    throw InputError("a repetition of at least " + std::to_string(min) + " and at most " +
                     std::to_string(max));
  if (max == 0) return empty();
  if (min == 1 && max == 1) return e;
  if (min == 0 && max == 1) return optional(e);
  if (min == 0 && max == kUnbounded) return add({Op::kStar, 0, 0, {e.id}, 1});
  if (min == 1 && max == kUnbounded) return sequence({e, star(e)});
  Item item{Op::kRepeat, min, max, {e.id}, 1};
  const int64_t times = max == kUnbounded ? min : max;
  const int64_t weight = times * items_[static_cast<size_t>(e.id)].weight;
  if (times > kMaxWeight || weight > kMaxWeight) {
    throw InputError("repetitions within repetitions: more than " + std::to_string(kMaxWeight) +
                     " in all");
  }
  const Expr out = add(std::move(item));
  items_.back().weight = weight;
  return out;
}

// Splits [low, high] into products of byte ranges: by length, then where leading bytes differ.
void GrammarBuilder::utf8_ranges(uint32_t low, uint32_t high, std::vector<Expr>& out) {
  for (const uint32_t limit : {0x7FU, 0x7FFU, 0xFFFFU}) {
    if (low <= limit && high > limit) {
      utf8_ranges(low, limit, out);
      return utf8_ranges(limit + 1, high, out);
    }
  }
  if (high <= 0x7F) {
    return out.push_back(range(static_cast<int32_t>(low), static_cast<int32_t>(high)));
  }
  const int length = high <= 0x7FF ? 2 : high <= 0xFFFF ? 3 : 4;
  for (int i = 1; i < length; ++i) {
    const uint32_t mask = (1U << (6 * i)) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if ((low & mask) != 0) {
      utf8_ranges(low, low | mask, out);
      return utf8_ranges((low | mask) + 1, high, out);
    }
    if ((high & mask) != mask) {
      utf8_ranges(low, (high & ~mask) - 1, out);
      return utf8_ranges(high & ~mask, high, out);
    }
  }
  const uint32_t lead = length == 2 ? 0xC0 : length == 3 ? 0xE0 : 0xF0;
  std::vector<Expr> parts;
  for (int i = length - 1; i >= 0; --i) {
    const uint32_t mark = i == length - 1 ? lead : 0x80;
    const uint32_t bits = i == length - 1 ? 0xFF : 0x3F;
    parts.push_back(range(static_cast<int32_t>(mark | (low >> (6 * i) & bits)),
                          static_cast<int32_t>(mark | (high >> (6 * i) & bits))));
  }
  out.push_back(sequence(std::move(parts)));
}

GrammarBuilder::Expr GrammarBuilder::code_points(const std::vector<CodeRange>& ranges) {
  std::vector<Expr> parts;
  for (const CodeRange& r : ranges) {
    if (r.low <= std::min(r.high, 0xD7FFU)) utf8_ranges(r.low, std::min(r.high, 0xD7FFU), parts);
    if (std::max(r.low, 0xE000U) <= r.high) utf8_ranges(std::max(r.low, 0xE000U), r.high, parts);
  }
  if (parts.empty()) throw InputError("a set of characters is empty");
  return any_of(std::move(parts));
}

int32_t GrammarBuilder::marker_symbol(int32_t token) {
  auto& m = grammar_->markers;
  const auto at = std::find(m.begin(), m.end(), token);
  const auto i = static_cast<int32_t>(at - m.begin());
  if (at == m.end()) m.push_back(token);
  return 256 + i;
}

GrammarBuilder::Expr GrammarBuilder::marker(int32_t token) {
  const int32_t s = marker_symbol(token);
  return range(s, s);
}

// One rule for each number of symbols of `end` that have just been seen (Knuth, Morris, Pratt).
GrammarBuilder::Expr GrammarBuilder::until(const std::vector<int32_t>& end, Expr then,
                                           bool may_stop) {
  const size_t n = end.size();
  std::vector<int32_t> states;
  for (size_t i = 0; i < n; ++i) states.push_back(declare());
  const auto after = [&](size_t seen, int32_t symbol) {
    for (size_t length = seen + 1; length > 0; --length) {
      if (end[length - 1] != symbol) continue;
      if (std::equal(end.begin(), end.begin() + static_cast<int64_t>(length) - 1,
                     end.begin() + static_cast<int64_t>(seen - (length - 1)))) {
        return length;
      }
    }
    return size_t{0};
  };
  for (size_t i = 0; i < n; ++i) {
    std::vector<Expr> moves;
    const auto go = [&](int32_t low, int32_t high, size_t to) {
      moves.push_back(sequence({range(low, high), to == n ? then : call(states[to])}));
    };
    const auto seen = end.begin() + static_cast<int64_t>(i);
    if (std::any_of(end.begin(), seen, [](int32_t s) { return s >= 256; })) {
      go(end[i], end[i], i + 1);
      define(states[i], any_of(std::move(moves)));
      continue;
    }
    if (may_stop) moves.push_back(empty());
    int32_t from = 0;
    std::vector<int32_t> stops;
    for (size_t j = 0; j <= i; ++j) stops.push_back(end[j]);
    std::sort(stops.begin(), stops.end());
    stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
    for (const int32_t s : stops) {
      const size_t to = after(i, s);
      if (s >= 256) {
        // A marker comes in its place or not at all: it is never part of the text.
        if (end[i] == s) go(s, s, to);
        continue;
      }
      if (from < s) go(from, s - 1, 0);
      go(s, s, to);
      from = s + 1;
    }
    if (from <= 255) go(from, 255, 0);
    define(states[i], any_of(std::move(moves)));
  }
  return call(states[0]);
}

int32_t GrammarBuilder::declare() {
  bodies_.push_back(-1);
  return static_cast<int32_t>(bodies_.size()) - 1;
}

void GrammarBuilder::define(int32_t rule, Expr body) {
  bodies_[static_cast<size_t>(rule)] = body.id;
}

GrammarBuilder::Expr GrammarBuilder::call(int32_t rule) { return add({Op::kCall, rule, 0, {}, 1}); }

GrammarBuilder::Expr GrammarBuilder::rule(Expr body) {
  const int32_t r = declare();
  define(r, body);
  return call(r);
}

int32_t GrammarBuilder::node(GrammarNode n) {
  if (grammar_->nodes.size() >= kMaxNodes) throw InputError("the constraint is too large");
  grammar_->nodes.push_back(std::move(n));
  return static_cast<int32_t>(grammar_->nodes.size()) - 1;
}

// Nodes of an expression that go on to `next`; node 0 is the end of every rule.
int32_t GrammarBuilder::emit(int32_t expr, int32_t next) {
  const Item& e = items_[static_cast<size_t>(expr)];
  using Kind = GrammarNode::Kind;
  switch (e.op) {
    case Op::kEmpty:
      return next;
    case Op::kRange:
      return node({Kind::kRange, e.low, e.high, next, -1, {}});
    case Op::kSequence:
      for (auto p = e.parts.rbegin(); p != e.parts.rend(); ++p) next = emit(*p, next);
      return next;
    case Op::kAnyOf: {
      std::vector<int32_t> targets;
      for (const int32_t p : e.parts) targets.push_back(emit(p, next));
      return node({Kind::kSplit, 0, 0, -1, -1, std::move(targets)});
    }
    case Op::kStar: {
      const int32_t loop = node({Kind::kSplit, 0, 0, -1, -1, {}});
      const int32_t body = emit(e.parts[0], loop);
      grammar_->nodes[static_cast<size_t>(loop)].targets = {body, next};
      return loop;
    }
    case Op::kRepeat: {
      const int32_t body = emit(e.parts[0], 0);
      return node({Kind::kRepeat, e.low, e.high, next, body, {}});
    }
    case Op::kCall:
      return node({Kind::kCall, 0, 0, next, e.low, {}});
  }
  return next;
}

// Which expressions may be empty. The parts of an expression stand before it, so that one pass
// settles all but rules that are called before they are defined; least fixed point.
std::vector<uint8_t> GrammarBuilder::nullable_items() const {
  std::vector<uint8_t> out(items_.size());
  const auto is = [&](int32_t p) { return out[static_cast<size_t>(p)] != 0; };
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < items_.size(); ++i) {
      const Item& e = items_[i];
      bool empty = e.op == Op::kEmpty || e.op == Op::kStar;
      if (e.op == Op::kSequence) empty = std::all_of(e.parts.begin(), e.parts.end(), is);
      if (e.op == Op::kAnyOf) empty = std::any_of(e.parts.begin(), e.parts.end(), is);
      if (e.op == Op::kRepeat) empty = e.low == 0 || is(e.parts[0]);
      if (e.op == Op::kCall) empty = is(body_of(e.low));
      changed |= empty != (out[i] != 0);
      out[i] = empty ? 1 : 0;
    }
  }
  return out;
}

// Calls within calls that the shortest text of an expression needs, where more follows in its rule
// (inside) and where nothing does (last): what is called last in a rule takes its place.
GrammarBuilder::Depths GrammarBuilder::depth(const Item& e, const std::vector<Depths>& of) const {
  const auto at = [&](int32_t p) { return of[static_cast<size_t>(p)]; };
  Depths d;
  switch (e.op) {
    case Op::kSequence:
      for (const int32_t p : e.parts) d.inside = std::max(d.inside, at(p).inside);
      for (size_t i = 0; i + 1 < e.parts.size(); ++i)
        d.last = std::max(d.last, at(e.parts[i]).inside);
      d.last = std::max(d.last, at(e.parts.back()).last);
      return d;
    case Op::kAnyOf:
      d = {kEndless, kEndless};
      for (const int32_t p : e.parts) {
        d = {std::min(d.inside, at(p).inside), std::min(d.last, at(p).last)};
      }
      return d;
    case Op::kRepeat:
      if (e.low > 0) d = {at(e.parts[0]).inside, at(e.parts[0]).inside};
      return d;
    case Op::kCall:
      d.last = at(body_of(e.low)).last;
      d.inside = std::min(d.last + 1, kEndless);
      return d;
    default:
      return d;
  }
}

void GrammarBuilder::check_depth() {
  std::vector<Depths> depths(items_.size(), {kEndless, kEndless});
  for (int32_t round = 0; round <= kMaxRounds; ++round) {
    bool changed = false;
    for (size_t i = 0; i < items_.size(); ++i) {
      const Depths d = depth(items_[i], depths);
      changed |= d.inside < depths[i].inside || d.last < depths[i].last;
      depths[i] = d;
    }
    if (!changed) break;
  }
  for (size_t r = 0; r < bodies_.size(); ++r) {
    const int32_t d = depths[static_cast<size_t>(bodies_[r])].last;
    if (d >= Grammar::kMaxDepth) {
      throw InputError("the constraint has a part that no finite text satisfies");
    }
    grammar_->rules[r].min_depth = d;
  }
}

// The rules that may be called before any symbol. An expression that stands in several places is
// looked at once.
std::vector<int32_t> GrammarBuilder::first_calls(int32_t rule, const std::vector<uint8_t>& nullable,
                                                 std::vector<int32_t>& seen) const {
  std::vector<int32_t> out, work{body_of(rule)};
  while (!work.empty()) {
    const auto at = static_cast<size_t>(work.back());
    work.pop_back();
    if (seen[at] == rule) continue;
    seen[at] = rule;
    const Item& e = items_[at];
    if (e.op == Op::kCall) out.push_back(e.low);
    for (const int32_t p : e.parts) {
      work.push_back(p);
      if (e.op == Op::kSequence && nullable[static_cast<size_t>(p)] == 0) break;
    }
  }
  return out;
}

// A rule that comes back to itself without a symbol would be followed for ever: the calls that
// come first must form no circle, which taking away rules that nobody calls first shows.
void GrammarBuilder::check_recursion() const {
  const std::vector<uint8_t> nullable = nullable_items();
  std::vector<int32_t> seen(items_.size(), -1);
  std::vector<std::vector<int32_t>> calls(bodies_.size());
  std::vector<int64_t> callers(bodies_.size());
  for (size_t r = 0; r < bodies_.size(); ++r) {
    calls[r] = first_calls(static_cast<int32_t>(r), nullable, seen);
    for (const int32_t c : calls[r]) ++callers[static_cast<size_t>(c)];
  }
  std::vector<size_t> free;
  for (size_t r = 0; r < bodies_.size(); ++r) {
    if (callers[r] == 0) free.push_back(r);
  }
  size_t taken = 0;
  for (; taken < free.size(); ++taken) {
    for (const int32_t c : calls[free[taken]]) {
      if (--callers[static_cast<size_t>(c)] == 0) free.push_back(static_cast<size_t>(c));
    }
  }
  if (taken < bodies_.size()) throw InputError("a part of the constraint stands for itself");
}

std::shared_ptr<const Grammar> GrammarBuilder::finish(Expr whole) {
  define(0, whole);
  grammar_->rules.resize(bodies_.size());
  check_depth();
  check_recursion();
  node({});
  for (size_t r = 0; r < bodies_.size(); ++r) grammar_->rules[r].entry = emit(bodies_[r], 0);
  return std::move(grammar_);
}

}  // namespace tamis
