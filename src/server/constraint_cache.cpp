#include "server/constraint_cache.h"

namespace tamis::server {
namespace {

// Everything that a constraint depends on; lengths keep one text from passing for two.
std::string key_of(const ConstraintSpec& s) {
  std::string key;
  const auto add = [&](const std::string& text) {
    key += std::to_string(text.size()) + ':' + text;
  };
  for (const int n : {static_cast<int>(s.answer), static_cast<int>(s.tools),
                      static_cast<int>(s.format), s.parallel ? 1 : 0, s.in_thinking ? 1 : 0}) {
    key += static_cast<char>('0' + n);
  }
  add(s.text);
  for (const ToolSpec& tool : s.declared) {
    add(tool.name);
    add(tool.strict ? tool.parameters_json : std::string());
    key += tool.strict ? '1' : '0';
  }
  return key;
}

}  // namespace

ConstraintCache::ConstraintCache(std::shared_ptr<const TokenTrie> trie)
    : ConstraintCache(std::move(trie), Limits()) {}

ConstraintCache::ConstraintCache(std::shared_ptr<const TokenTrie> trie, Limits limits)
    : trie_(std::move(trie)), limits_(limits) {}

std::shared_ptr<Constraint> ConstraintCache::find(const std::string& key) {
  const auto it = by_key_.find(key);
  if (it == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, it->second);
  return it->second->constraint;
}

std::shared_ptr<Constraint> ConstraintCache::get(const ConstraintSpec& spec) {
  std::string key = key_of(spec);
  {
    const std::lock_guard lock(mutex_);
    if (auto found = find(key)) {
      ++hits_;
      return found;
    }
  }
  // Not under the lock: others need not wait for a large schema.
  auto fresh = compile_constraint(spec, trie_);
  if (fresh == nullptr) return nullptr;
  // What is too ambiguous from its start is refused here, and the first mask is ready.
  Matcher(fresh).allowed();
  const std::lock_guard lock(mutex_);
  ++misses_;
  if (auto found = find(key)) return found;
  entries_.push_front({std::move(key), fresh});
  by_key_.emplace(entries_.front().key, entries_.begin());
  shrink();
  return fresh;
}

// The newest stays in any case.
void ConstraintCache::shrink() {
  int64_t bytes = 0;
  size_t kept = 0;
  auto it = entries_.begin();
  for (; it != entries_.end(); ++it, ++kept) {
    bytes += static_cast<int64_t>(it->key.size()) + it->constraint->bytes();
    if (kept > 0 && (kept >= limits_.count || bytes > limits_.bytes)) break;
  }
  while (it != entries_.end()) {
    by_key_.erase(it->key);
    it = entries_.erase(it);
  }
}

ConstraintCache::Stats ConstraintCache::stats() const {
  const std::lock_guard lock(mutex_);
  Stats s{hits_, misses_, static_cast<int64_t>(entries_.size()), 0};
  for (const Entry& e : entries_) {
    s.bytes += static_cast<int64_t>(e.key.size()) + e.constraint->bytes();
  }
  return s;
}

}  // namespace tamis::server
