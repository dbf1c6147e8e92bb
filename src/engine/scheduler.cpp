#include "engine/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace tamis {
namespace {

// Prefills get at least this part of a pass, however many requests are decoding.
constexpr int64_t kPrefillFloor = 8;
// Pages left free at admission, so that those who run can grow for a while: one for each, but not
// more than this part of the pool.
constexpr int64_t kSpareShare = 16;

void insert_in_order(Scheduler::Sequences& list, std::unique_ptr<Sequence> s) {
  const auto at = std::upper_bound(list.begin(), list.end(), s,
                                   [](const auto& a, const auto& b) { return a->before(*b); });
  list.insert(at, std::move(s));
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, PagedCache& cache)
    : options_(options), cache_(cache), prefixes_(cache) {
  if (options_.chunk < 1) throw UsageError("chunk: want at least 1 token");
  if (options_.max_sequences < 1) throw UsageError("max_sequences: want at least 1");
}

Scheduler::~Scheduler() {
  for (auto* list : {&running_, &waiting_}) {
    for (auto& s : *list) cache_.release(s->cache);
  }
}

void Scheduler::add(std::unique_ptr<Sequence> s) { insert_in_order(waiting_, std::move(s)); }

void Scheduler::plan() {
  for (auto& s : running_) s->taken = 0;
  grow();
  admit();
  share();
}

// Room for all tokens that the sequence has, so that a pass never lacks a page. Guesses are no
// reason to put anybody back.
bool Scheduler::make_pages(Sequence& s) {
  if (!s.drafts.empty()) {
    if (make_pages_for(s, s.left() + static_cast<int64_t>(s.drafts.size()))) return true;
    s.drafts.clear();
  }
  return make_pages_for(s, s.left());
}

bool Scheduler::make_pages_for(Sequence& s, int64_t tokens) {
  const int64_t more =
      pages_for(s.cache.length + tokens) - static_cast<int64_t>(s.cache.pages.size());
  if (more > 0) prefixes_.make_room(more);
  return cache_.reserve(s.cache, tokens);
}

// Those who run come first, in order; the last ones give way. The first one always gets through: a
// request that could not fit the pool alone is never accepted.
void Scheduler::grow() {
  for (size_t i = 0; i < running_.size(); ++i) {
    while (i < running_.size() && !make_pages(*running_[i])) preempt_last();
  }
}

void Scheduler::put_back(Sequence& s, bool keep) {
  if (keep && options_.prefix_cache) {
    const int64_t n =
        options_.answers_like_prompts ? s.cache.length : std::min(s.cache.length, s.prompt);
    prefixes_.insert(s.root, std::span(s.tokens).first(static_cast<size_t>(n)), s.cache,
                     /*whole=*/true);
  }
  cache_.release(s.cache);
}

// The pages may survive in the prefix cache until the sequence comes back; if not, they are
// computed again, to the same bits.
void Scheduler::preempt_last() {
  std::unique_ptr<Sequence> s = std::move(running_.back());
  running_.pop_back();
  s->taken = 0;
  s->drafts.clear();
  put_back(*s, /*keep=*/true);
  ++preemptions_;
  insert_in_order(waiting_, std::move(s));
}

bool Scheduler::fits(Sequence& s) {
  const auto running = static_cast<int64_t>(running_.size());
  if (running >= options_.max_sequences) return false;
  int64_t found = 0;
  if (options_.prefix_cache) {
    // The last token is computed in any case: somebody wants its logits. Answers are only found
    // again where they are the bits of a prompt.
    const int64_t limit =
        options_.answers_like_prompts ? s.size() - 1 : std::min(s.size() - 1, s.prompt);
    found = prefixes_.match(s.root, s.tokens, limit, s.cache);
  }
  const int64_t spare = std::min(running, cache_.total_pages() / kSpareShare);
  const int64_t need = pages_for(s.size()) - static_cast<int64_t>(s.cache.pages.size());
  if (need + spare > cache_.free_pages() + cache_.cached_pages() || !make_pages(s)) {
    cache_.release(s.cache);
    return false;
  }
  if (s.cached < 0) {
    s.cached = std::min(found, s.prompt);
    prefixes_.count(s.prompt, s.cached);
  }
  s.cache.pages.reserve(static_cast<size_t>(pages_for(s.prompt + s.request.max_tokens)));
  return true;
}

void Scheduler::admit() {
  while (!waiting_.empty()) {
    Sequence& s = *waiting_.front();
    if (fits(s)) {
      std::unique_ptr<Sequence> next = std::move(waiting_.front());
      waiting_.erase(waiting_.begin());
      next->taken = 0;
      insert_in_order(running_, std::move(next));
      continue;
    }
    if (running_.empty() || running_.back()->request.priority >= s.request.priority) return;
    preempt_last();
  }
}

int64_t Scheduler::can_take(const Sequence& s) const {
  if (!options_.answers_like_prompts && s.in_prompt()) return s.prompt - s.cache.length;
  return s.left();
}

// Decodes take their one token, and what is guessed to follow it. The prefills share what is left:
// half of it equally, so that none stands still behind a long one, the rest in order, so that the
// first is done early.
void Scheduler::share() {
  int64_t budget = options_.chunk;
  prefills_.clear();
  for (auto& s : running_) {
    if (s->decoding()) {
      s->taken = 1;
      budget -= 1 + static_cast<int64_t>(s->drafts.size());
    } else {
      prefills_.push_back(s.get());
    }
  }
  if (prefills_.empty()) return;
  budget = std::max({budget, options_.chunk / kPrefillFloor, int64_t{1}});
  const int64_t each = std::max<int64_t>(budget / (2 * static_cast<int64_t>(prefills_.size())), 1);
  for (const int64_t most : {each, options_.chunk}) {
    for (Sequence* s : prefills_) {
      const int64_t more = std::min({can_take(*s) - s->taken, most, budget});
      s->taken += more;
      budget -= more;
    }
  }
}

void Scheduler::advance(Sequence& s, int64_t tokens) {
  s.cache.length += tokens;
  // Others with the same beginning need not wait for the end of this one.
  if (options_.prefix_cache && !s.prompt_kept && !s.in_prompt()) {
    prefixes_.insert(s.root, s.request.prompt, s.cache, /*whole=*/false);
    s.prompt_kept = true;
  }
}

void Scheduler::finish(Sequence& s, bool keep) {
  put_back(s, keep);
  s.number = -1;
}

void Scheduler::drop_finished() {
  for (auto* list : {&running_, &waiting_}) {
    std::erase_if(*list, [](const auto& s) { return s->number < 0; });
  }
}

std::string Scheduler::audit() const {
  std::vector<const CachedSequence*> held;
  for (const auto* list : {&running_, &waiting_}) {
    for (const auto& s : *list) held.push_back(&s->cache);
  }
  return cache_.audit(held, prefixes_.kept());
}

}  // namespace tamis
