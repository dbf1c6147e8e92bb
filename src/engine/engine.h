// Runs requests on a model: admission, chunked prefill, batched decode, sampling.
//
//   Engine engine(model, context, options);
//   engine.submit(request);
//   while (!engine.idle()) { engine.step(events); ... }
//
// A request's tokens and log-probabilities are the same bits whatever else runs, however its prompt
// is cut into chunks, whether its prefix came from the cache, and whether it had to give way and
// come back. One thread calls an engine; check() alone may be called from any. Under N ranks every
// rank makes the same calls and gets the same events.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/drafter.h"
#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/selection_probe.h"

namespace tamis {

struct EngineOptions {
  SelectionPolicy policy;  // of requests that name none
  CacheOptions cache;
  int64_t max_context = 0;     // prompt and answer together; 0: the checkpoint's maximum
  int64_t chunk = 512;         // tokens of one forward pass
  int64_t max_sequences = 64;  // running at the same time
  int64_t max_waiting = 0;     // submitted and not yet running; 0: no limit
  bool prefix_cache = true;
  // The part of the generated tokens whose selection is compared with dense attention, for
  // metrics: 0 none, 1 all.
  double recall_sample = 0;
  // Tokens that the multi-token-prediction layer guesses ahead for each request that decodes, at
  // most kMaxSpeculation; 0: none. The next pass checks them all, and only tokens that it would
  // have given one by one come out. Needs LoadOptions::with_mtp and CacheOptions::with_mtp.
  int64_t speculative_tokens = 0;
  // For tests. Audits the books of the cache after every step (std::logic_error); and is called
  // with the requests of a pass before it runs: what it throws counts as a failure of the pass.
  bool audit = false;
  std::function<void(const std::vector<int64_t>&)> before_pass;
  // Called with a request, its tokens so far and the guesses, which it may change.
  std::function<void(int64_t, const std::vector<int32_t>&, std::vector<int32_t>&)> change_drafts;
};

class Engine {
 public:
  // One pass in so many is timed in parts (EngineStats::indexer_seconds).
  static constexpr int64_t kTimedPasses = 64;

  Engine(const LoadedModel& model, KernelContext& context, const EngineOptions& options);
  ~Engine();

  // InputError for an empty prompt, ids outside the vocabulary, more tokens than max_context or the
  // cache can ever hold, or an attention that the model does not have; UsageError for sampling
  // parameters.
  void check(const Request& request) const;
  // True if max_waiting requests wait: submit() would throw UsageError.
  bool queue_full() const;
  // Checks, and returns the request's number.
  int64_t submit(Request request);
  // The request ends with an event kCancelled at the next step. Unknown numbers are ignored.
  void cancel(int64_t request);
  bool idle() const { return scheduler_.waiting().empty() && scheduler_.running().empty(); }

  // At most one forward pass for each kind of attention in use. `events` is cleared, then holds
  // what happened, in order for each request. A pass that fails is tried again request by request,
  // and ends only those that fail alone.
  void step(std::vector<TokenEvent>& events);

  // Prompt tokens of the request that came from the prefix cache; 0 before it runs and after it.
  int64_t cached_tokens(int64_t request) const { return progress(request).cached_tokens; }
  // All zero for a request that is not here.
  RequestProgress progress(int64_t request) const;
  EngineStats stats() const;
  const PrefixStats& prefix_stats() const { return scheduler_.prefix_stats(); }
  // Kept prefixes across restarts (prefix_cache.h); the engine must be idle.
  int64_t save_prefixes(const PrefixFile& file) { return scheduler_.prefixes().save(file); }
  PrefixLoad load_prefixes(const PrefixFile& file) { return scheduler_.prefixes().load(file); }
  int64_t max_context() const { return options_.max_context; }
  const PagedCache& cache() const { return cache_; }
  // What is wrong with the books of the cache, empty if nothing. For tests, after any step.
  std::string audit() const { return scheduler_.audit(); }

 private:
  using Pass = std::span<Sequence* const>;

  void drop_cancelled(std::vector<TokenEvent>& events);
  void run(Pass pass, std::vector<TokenEvent>& events);
  void build_batch(Pass pass);
  void probe_tokens(Sequence& sequence, int64_t rows);
  void choose_results(Pass pass);
  void run_batch(const Selector& selector);
  void finish_tokens(Pass pass, std::vector<TokenEvent>& events);
  bool sample_tokens(Sequence& s, TokenEvent& event, std::vector<TokenEvent>& events);
  void sample(Sequence& s, int64_t row, TokenEvent& event);
  void draft(Pass pass);
  void end(Sequence& s, TokenEvent event, std::vector<TokenEvent>& events);
  const Sequence* find(int64_t request) const;
  bool native() const { return model_.model().options().precision == Precision::kNative; }

  const LoadedModel& model_;
  KernelContext& context_;
  EngineOptions options_;
  PagedCache cache_;
  Scheduler scheduler_;
  Activations act_;
  int64_t next_request_ = 0;
  EngineStats counts_;
  SelectionProbe probe_;
  double recall_due_ = 0;
  std::unique_ptr<Drafter> drafter_;

  // The batch of the current step; members so that a step allocates nothing.
  std::vector<Sequence*> pass_;
  std::vector<int32_t> ids_, sequence_, position_, logit_rows_, failed_;
  std::vector<KvSequence> tables_;
  std::vector<BatchSequence> slices_;
  std::vector<float> logits_, hidden_;
  std::vector<int32_t> best_;
  std::vector<SampleRow> draws_;  // how a device draws the tokens of a pass; empty: the largest
  std::vector<SampleEdit> edits_;
  bool best_only_ = false;  // this pass gives best_, not logits_
  Sampler::Scratch scratch_;
  std::vector<uint64_t> allowed_;
  std::vector<Sequence*> followed_;
  std::vector<std::pair<Sequence*, TokenEvent>> ending_;
};

}  // namespace tamis
