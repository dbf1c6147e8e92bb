#include "text/grammar/automaton.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"

namespace tamis {
namespace {

constexpr size_t kMaxPlaces = 512;    // of one state
constexpr size_t kMaxVisits = 20000;  // nodes passed without a symbol
constexpr size_t kFullStates = 4000;  // begin a new table
constexpr size_t kFullMasks = 400;
constexpr size_t kMaxStates = 60000;    // in the middle of one mask
constexpr size_t kMaxWork = 1'000'000;  // nodes passed for one mask: some 0.4 s
constexpr int32_t kUnknown = -2, kDead = -1;

[[noreturn]] void too_ambiguous(const char* what, size_t limit) {
  throw InputError(std::string("the constraint is too ambiguous to follow: more than ") +
                   std::to_string(limit) + " " + what);
}

}  // namespace

// A place in the grammar: a kRange node, and the frames to come back to.
struct Place {
  int32_t node, frame;
  friend auto operator<=>(const Place&, const Place&) = default;
};

class GrammarTable {
 public:
  GrammarTable(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie)
      : grammar_(std::move(grammar)), trie_(std::move(trie)) {}

  int32_t start() {
    std::lock_guard lock(mutex_);
    Collector c{*this};
    c.enter_rule(0, kBottom);
    return intern(c);
  }

  int32_t step_token(int32_t state, int32_t token) {
    std::lock_guard lock(mutex_);
    const auto& markers = grammar_->markers;
    const auto m = std::find(markers.begin(), markers.end(), token);
    if (m != markers.end()) return step(state, 256 + static_cast<int32_t>(m - markers.begin()));
    const std::string& bytes = trie_->bytes(token);
    if (bytes.empty()) return kDead;
    for (const char c : bytes) {
      state = step(state, static_cast<uint8_t>(c));
      if (state == kDead) return kDead;
    }
    return state;
  }

  std::span<const uint64_t> mask(int32_t state) {
    std::lock_guard lock(mutex_);
    if (states_[idx(state)].mask.empty()) {
      auto mask = compute_mask(state);
      states_[idx(state)].mask = std::move(mask);
      ++masks_;
    }
    return states_[idx(state)].mask;
  }

  bool accepting(int32_t state) const {
    std::lock_guard lock(mutex_);
    return states_[idx(state)].accepting;
  }
  bool finished(int32_t state) const {
    std::lock_guard lock(mutex_);
    return states_[idx(state)].accepting && states_[idx(state)].places.empty();
  }
  bool full() const {
    std::lock_guard lock(mutex_);
    return states_.size() > kFullStates || masks_ > kFullMasks || frames_.size() > 8 * kFullStates;
  }

  int64_t bytes() const {
    std::lock_guard lock(mutex_);
    const size_t state = sizeof(State) + (256 + grammar_->markers.size()) * sizeof(int32_t);
    // A frame and a place each stand in a list and in a tree.
    return static_cast<int64_t>(states_.size() * state + frames_.size() * 5 * sizeof(Frame) +
                                places_ * 2 * sizeof(Place) +
                                masks_ * static_cast<size_t>(trie_->words()) * sizeof(uint64_t));
  }

  // The same state in this table; its frames are copied from the other.
  int32_t import(const GrammarTable& from, int32_t state) {
    std::scoped_lock lock(mutex_, from.mutex_);
    const State& s = from.states_[idx(state)];
    std::vector<Place> places;
    for (const Place& p : s.places) places.push_back({p.node, copy_frame(from, p.frame)});
    std::sort(places.begin(), places.end());
    return intern(std::move(places), s.accepting);
  }

 private:
  static constexpr int32_t kBottom = 0;
  // Where to go on: after a kCall or kRepeat node; `count` repetitions are done.
  struct Frame {
    int32_t parent = -1, node = -1, count = 0, depth = 0;
    friend auto operator<=>(const Frame&, const Frame&) = default;
  };
  struct State {
    std::vector<Place> places;
    bool accepting = false;
    std::vector<int32_t> next;  // 256 bytes, then markers
    std::vector<uint64_t> mask;
  };

  // The places that can be reached without a symbol.
  struct Collector {
    GrammarTable& table;
    std::vector<Place> places = {};
    bool accepting = false;
    std::vector<Place> work = {};
    std::set<Place> seen = {};

    void enter_rule(int32_t rule, int32_t frame) {
      add(table.grammar_->rules[idx(rule)].entry, frame);
      run();
    }
    void add(int32_t node, int32_t frame) {
      if (seen.size() > kMaxVisits) too_ambiguous("ways on before one symbol", kMaxVisits);
      if (seen.insert({node, frame}).second) work.push_back({node, frame});
    }
    void run() {
      while (!work.empty()) {
        const Place p = work.back();
        work.pop_back();
        visit(p);
      }
    }
    void visit(const Place& p) {
      const GrammarNode& n = table.grammar_->nodes[idx(p.node)];
      switch (n.kind) {
        case GrammarNode::Kind::kRange:
          if (places.size() >= kMaxPlaces) too_ambiguous("places at one time", kMaxPlaces);
          return places.push_back(p);
        case GrammarNode::Kind::kSplit:
          for (const int32_t t : n.targets) add(t, p.frame);
          return;
        case GrammarNode::Kind::kCall:
          return call(n, p);
        case GrammarNode::Kind::kRepeat:
          return again(p.node, 0, p.frame);
        case GrammarNode::Kind::kEnd:
          return leave(p.frame);
      }
    }
    void call(const GrammarNode& n, const Place& p) {
      const Grammar::Rule& rule = table.grammar_->rules[idx(n.target)];
      // The last call of a rule takes its place, so that lists do not grow in depth.
      if (table.grammar_->nodes[idx(n.next)].kind == GrammarNode::Kind::kEnd) {
        return add(rule.entry, p.frame);
      }
      const int32_t depth = table.frames_[idx(p.frame)].depth + 1;
      if (depth + rule.min_depth > Grammar::kMaxDepth) return;
      add(rule.entry, table.frame({p.frame, p.node, 0, depth}));
    }
    // The repetition may go on, and may end.
    void again(int32_t node, int32_t count, int32_t frame) {
      const GrammarNode& n = table.grammar_->nodes[idx(node)];
      const bool endless = n.high == GrammarBuilder::kUnbounded;
      if (endless) count = std::min(count, n.low);
      if (endless || count < n.high) {
        const int32_t depth = table.frames_[idx(frame)].depth;
        add(n.target, table.frame({frame, node, count, depth}));
      }
      if (count >= n.low) add(n.next, frame);
    }
    void leave(int32_t frame) {
      if (frame == kBottom) {
        accepting = true;
        return;
      }
      const Frame f = table.frames_[idx(frame)];
      const GrammarNode& n = table.grammar_->nodes[idx(f.node)];
      if (n.kind == GrammarNode::Kind::kCall) return add(n.next, f.parent);
      again(f.node, f.count + 1, f.parent);
    }
  };

  static size_t idx(int32_t i) { return static_cast<size_t>(i); }

  int32_t frame(const Frame& f) {
    const auto [it, added] = frame_ids_.try_emplace(f, static_cast<int32_t>(frames_.size()));
    if (added) frames_.push_back(f);
    return it->second;
  }

  int32_t copy_frame(const GrammarTable& from, int32_t id) {
    std::vector<int32_t> chain;
    for (; id != kBottom; id = from.frames_[idx(id)].parent) chain.push_back(id);
    int32_t at = kBottom;
    for (auto i = chain.rbegin(); i != chain.rend(); ++i) {
      Frame f = from.frames_[idx(*i)];
      f.parent = at;
      at = frame(f);
    }
    return at;
  }

  int32_t intern(Collector& c) {
    std::sort(c.places.begin(), c.places.end());
    return intern(std::move(c.places), c.accepting);
  }
  int32_t intern(std::vector<Place> places, bool accepting) {
    if (places.empty() && !accepting) return kDead;
    const auto key = std::make_pair(std::move(places), accepting);
    const auto [it, added] = state_ids_.try_emplace(key, static_cast<int32_t>(states_.size()));
    if (added) {
      if (states_.size() >= kMaxStates) too_ambiguous("states for one token", kMaxStates);
      places_ += key.first.size();
      states_.push_back({key.first,
                         accepting,
                         std::vector<int32_t>(256 + grammar_->markers.size(), kUnknown),
                         {}});
    }
    return it->second;
  }

  // Computed for all symbols at once that the places do not tell apart from this one.
  int32_t step(int32_t state, int32_t symbol) {
    if (const int32_t known = states_[idx(state)].next[idx(symbol)]; known != kUnknown) {
      return known;
    }
    int32_t low = symbol < 256 ? 0 : symbol, high = symbol < 256 ? 255 : symbol;
    Collector c{*this};
    for (const Place& p : states_[idx(state)].places) {
      const GrammarNode& n = grammar_->nodes[idx(p.node)];
      if (n.low <= symbol && symbol <= n.high) {
        low = std::max(low, n.low);
        high = std::min(high, n.high);
        c.add(n.next, p.frame);
      } else if (n.low > symbol) {
        high = std::min(high, n.low - 1);
      } else {
        low = std::max(low, n.high + 1);
      }
    }
    c.run();
    work_ += c.seen.size();
    const int32_t to = intern(c);
    for (int32_t s = low; s <= high; ++s) states_[idx(state)].next[idx(s)] = to;
    return to;
  }

  std::vector<uint64_t> compute_mask(int32_t state) {
    std::vector<uint64_t> bits(static_cast<size_t>(trie_->words()));
    const auto set = [&](int32_t token) { bits[idx(token) / 64] |= 1ULL << (token % 64); };
    std::vector<int32_t> path(static_cast<size_t>(trie_->max_bytes()) + 1, kDead);
    path[0] = state;
    work_ = 0;
    const auto& nodes = trie_->nodes();
    for (size_t i = 0; i < nodes.size();) {
      const TokenTrie::Node& n = nodes[i];
      const int32_t to = step(path[idx(n.depth - 1)], n.byte);
      if (work_ > kMaxWork) too_ambiguous("steps for one token", kMaxWork);
      if (to == kDead) {
        i = idx(n.skip);
        continue;
      }
      path[idx(n.depth)] = to;
      for (int32_t t = n.token; t >= 0; t = trie_->same_bytes(t)) set(t);
      ++i;
    }
    for (size_t m = 0; m < grammar_->markers.size(); ++m) {
      if (step(state, 256 + static_cast<int32_t>(m)) != kDead) set(grammar_->markers[m]);
    }
    return bits;
  }

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  mutable std::mutex mutex_;
  std::vector<Frame> frames_{Frame{}};
  std::map<Frame, int32_t> frame_ids_;
  std::vector<State> states_;
  std::map<std::pair<std::vector<Place>, bool>, int32_t> state_ids_;
  size_t masks_ = 0, places_ = 0;
  size_t work_ = 0;  // nodes passed since the mask was begun
};

Constraint::Constraint(std::shared_ptr<const Grammar> grammar,
                       std::shared_ptr<const TokenTrie> trie)
    : grammar_(std::move(grammar)), trie_(std::move(trie)) {}
Constraint::~Constraint() = default;

int64_t Constraint::bytes() const {
  const std::lock_guard lock(mutex_);
  const auto nodes = static_cast<int64_t>(grammar_->nodes.size() * sizeof(GrammarNode));
  return nodes + (table_ == nullptr ? 0 : table_->bytes());
}

std::shared_ptr<GrammarTable> Constraint::table() {
  std::lock_guard lock(mutex_);
  if (table_ == nullptr) table_ = std::make_shared<GrammarTable>(grammar_, trie_);
  return table_;
}

// Another request may have begun a new one already.
std::shared_ptr<GrammarTable> Constraint::renew(const std::shared_ptr<GrammarTable>& full) {
  std::lock_guard lock(mutex_);
  if (table_ == full) table_ = std::make_shared<GrammarTable>(grammar_, trie_);
  return table_;
}

Matcher::Matcher(std::shared_ptr<Constraint> constraint)
    : constraint_(std::move(constraint)), table_(constraint_->table()), state_(table_->start()) {}

std::span<const uint64_t> Matcher::allowed() { return table_->mask(state_); }

bool Matcher::accept(int32_t token) {
  const int32_t to = table_->step_token(state_, token);
  if (to < 0) return false;
  state_ = to;
  return true;
}

bool Matcher::accepting() const { return table_->accepting(state_); }
bool Matcher::finished() const { return table_->finished(state_); }

void Matcher::commit() {
  if (!table_->full()) return;
  auto fresh = constraint_->renew(table_);
  if (fresh == table_) return;
  state_ = fresh->import(*table_, state_);
  table_ = std::move(fresh);
}

}  // namespace tamis
