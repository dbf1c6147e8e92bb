// Runs requests on a model: admission, chunked prefill, batched decode, sampling.
//
//   Engine engine(model, context, options);
//   engine.submit(request);
//   while (!engine.idle()) { engine.step(events); ... }
//
// A request's tokens and log-probabilities are the same bits whatever else runs, however its prompt
// is cut into chunks and whether its prefix came from the cache. One thread calls an engine. Under
// N ranks every rank makes the same calls and gets the same events.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "engine/prefix_cache.h"
#include "engine/sampler.h"

namespace tamis {

struct EngineOptions {
  SelectionPolicy policy;
  CacheOptions cache;
  int64_t max_context = 0;     // prompt and answer together; 0: the checkpoint's maximum
  int64_t chunk = 512;         // tokens of one forward pass
  int64_t max_sequences = 64;  // running at the same time
  bool prefix_cache = true;
};

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = 256;
  std::vector<int64_t> stop_ids;  // end of text; empty: none is obeyed
  // Only requests with the same salt share cached prefixes: one for each tenant that must not learn
  // from response times what another has asked.
  std::string cache_salt;
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kError, kCancelled };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", ...

struct TokenEvent {
  int64_t request = 0;
  SampledToken token;  // id -1 in an event that only ends the request
  FinishReason finish = FinishReason::kNone;
  std::string error;  // of kError: what went wrong, naming the layer
};

class Engine {
 public:
  Engine(const LoadedModel& model, KernelContext& context, const EngineOptions& options);
  ~Engine();

  // Returns the request's number. InputError for an empty prompt, ids outside the vocabulary, or
  // more tokens than max_context or the cache can ever hold; UsageError for sampling parameters.
  int64_t submit(Request request);
  // The request ends with an event kCancelled at the next step. Unknown numbers are ignored.
  void cancel(int64_t request);
  bool idle() const { return waiting_.empty() && running_.empty(); }

  // One forward pass. `events` is cleared, then holds what happened, at most one event a request.
  void step(std::vector<TokenEvent>& events);

  // Prompt tokens of the request that came from the prefix cache; valid while it runs.
  int64_t cached_tokens(int64_t request) const;
  int64_t max_context() const { return options_.max_context; }
  const PagedCache& cache() const { return cache_; }
  const PrefixStats& prefix_stats() const { return prefixes_.stats(); }
  // What is wrong with the books of the cache, empty if nothing. For tests, after any step.
  std::string audit() const;

 private:
  struct Running;

  std::string root_of(const Request& request) const;
  void admit();
  void build_batch();
  void run_batch();
  void finish_tokens(std::vector<TokenEvent>& events);
  void end(Running& r, FinishReason reason);

  const LoadedModel& model_;
  KernelContext& context_;
  EngineOptions options_;
  std::unique_ptr<Selector> selector_;
  PagedCache cache_;
  PrefixCache prefixes_;
  Activations act_;
  int64_t next_request_ = 0;
  std::vector<std::unique_ptr<Running>> waiting_, running_;

  // The batch of the current step; members so that a step allocates nothing.
  std::vector<int32_t> ids_, sequence_, position_, logit_rows_, failed_;
  std::vector<KvSequence> tables_;
  std::vector<BatchSequence> slices_;
  std::vector<float> logits_;
  Sampler::Scratch scratch_;
};

}  // namespace tamis
