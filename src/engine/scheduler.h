// Decides which requests run, with which pages, and how many tokens each has in the next pass.
// Knows nothing of the model. docs/engine.md tells the rules and why none can starve.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/paged_cache.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace tamis {

struct SchedulerOptions {
  int64_t chunk = 512;         // tokens of one pass
  int64_t max_sequences = 64;  // running at the same time
  bool prefix_cache = true;
  // What the model writes is bit for bit what it would compute from a prompt of the same tokens.
  // Then answers are kept and recomputed like prompts; otherwise (the native path) only prompts
  // are kept, and no chunk holds tokens of both.
  bool answers_like_prompts = true;
};

class Scheduler {
 public:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;

  Scheduler(const SchedulerOptions& options, PagedCache& cache);
  ~Scheduler();

  void add(std::unique_ptr<Sequence> sequence);

  // Sets `taken` of every running sequence, and sees to it that the pages for these tokens are
  // there. At least one sequence takes at least one token if there is any sequence.
  void plan();

  // The pass is done: `tokens` more of a sequence are in the cache.
  void advance(Sequence& sequence, int64_t tokens);

  // Gives the pages back; they stay in the prefix cache if `keep`. The sequence is then removed
  // by drop_finished().
  void finish(Sequence& sequence, bool keep);
  void drop_finished();

  // Running and waiting, in the order in which they have their turn.
  const Sequences& running() const { return running_; }
  const Sequences& waiting() const { return waiting_; }
  int64_t preemptions() const { return preemptions_; }
  const PrefixStats& prefix_stats() const { return prefixes_.stats(); }

  PrefixCache& prefixes() { return prefixes_; }

  // What is wrong with the books of the cache, empty if nothing.
  std::string audit() const;

 private:
  void grow();
  void admit();
  bool fits(Sequence& sequence);
  bool make_pages(Sequence& sequence);
  bool make_pages_for(Sequence& sequence, int64_t tokens);
  void preempt_last();
  void share();
  int64_t can_take(const Sequence& sequence) const;
  void put_back(Sequence& sequence, bool keep);

  SchedulerOptions options_;
  PagedCache& cache_;
  PrefixCache prefixes_;
  Sequences running_, waiting_;
  std::vector<Sequence*> prefills_;
  int64_t preemptions_ = 0;
};

}  // namespace tamis
