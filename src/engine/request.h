// What is asked of an engine, and what it answers.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/sampler.h"
#include "engine/token_reads.h"
#include "model/selector.h"
#include "text/grammar/automaton.h"

namespace tamis {

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = 256;
  std::vector<int64_t> stop_ids;  // end of text; empty: none is obeyed
  // Only requests with the same salt share cached prefixes: one for each tenant that must not learn
  // from response times what another has asked.
  std::string cache_salt;
  int64_t priority = 0;  // the higher goes first, and may put lower ones back into the queue
  // Which earlier positions each token reads; the engine's own way if empty.
  std::optional<SelectionPolicy> attention;
  // What the answer may look like (text/grammar/constraint.h); null: anything. stop_ids may come
  // only where the constraint is satisfied; when nothing else may follow, the request stops.
  std::shared_ptr<Constraint> constraint;
  // Report with each token the context positions that were read most for it, this many; 0: none.
  int64_t top_reads = 0;
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kError, kCancelled };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", ...

struct TokenEvent {
  int64_t request = 0;
  SampledToken token;  // id -1 in an event that only ends the request
  FinishReason finish = FinishReason::kNone;
  std::string error;          // of kError: what went wrong
  bool refused = false;       // of kError: the request's own constraint cannot be followed
  int64_t cached_tokens = 0;  // prompt tokens that came from the prefix cache
};

// Where a request stands.
struct RequestProgress {
  int64_t prompt_tokens = 0, cached_tokens = 0;
  int64_t processed_tokens = 0;  // of the prompt, the cached ones included
  bool waiting = false;
};

// What came of tokens that were guessed ahead.
constexpr int64_t kMaxSpeculation = 8;
struct SpeculationStats {
  int64_t drafts = 0;                         // rows of guesses that a pass has checked
  int64_t tokens = 0;                         // in these
  int64_t accepted = 0;                       // of the tokens
  std::array<int64_t, kMaxSpeculation> at{};  // accepted ones by their place in the row
};

// Counts since the start, and the present state. For /metrics and /health.
struct EngineStats {
  int64_t running = 0, waiting = 0, max_waiting = 0;  // max_waiting 0: no limit
  int64_t pages_total = 0, pages_free = 0, pages_used = 0, pages_cached = 0;
  int64_t steps = 0;         // rises with every call of step(): the engine is alive
  int64_t passes = 0;        // forward passes
  double model_seconds = 0;  // in them, guesses included
  // Of one pass in Engine::kTimedPasses: in all of it, and in the indexer's scores and top-k.
  double timed_seconds = 0, indexer_seconds = 0;
  int64_t prefill_tokens = 0;    // computed for prompts, or again after a preemption
  int64_t generated_tokens = 0;  // sampled
  int64_t preemptions = 0;
  int64_t finished[5] = {};  // by FinishReason
  PrefixStats prefix;
  SelectionStats selection;      // with EngineOptions::recall_sample
  SpeculationStats speculation;  // with EngineOptions::speculative_tokens
};

}  // namespace tamis
