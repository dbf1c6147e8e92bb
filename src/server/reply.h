// The form of an answer: what each API sends, whole or as server-sent events. A reply only makes
// text; running_call.h decides when it goes out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/api_error.h"
#include "server/call.h"
#include "server/generation.h"

namespace tamis::server {

struct Timings {
  double queue_s = 0;    // arrival to the first pass
  double prompt_s = 0;   // to the first token
  double predict_s = 0;  // first to last token
  int64_t prompt_tokens = 0, cached_tokens = 0, predicted_tokens = 0;
};

struct CallSummary {
  std::vector<const GenerationResult*> results;   // by choice
  std::vector<std::vector<SampledToken>> scores;  // of the prompts, by choice; empty if not asked
  std::vector<const std::vector<int32_t>*> prompts;  // by choice
  int64_t prompt_tokens = 0, completion_tokens = 0, reasoning_tokens = 0, cached_tokens = 0;
  Timings timings;
};

struct PromptProgress {
  int64_t total = 0, cached = 0, processed = 0;
  double seconds = 0;
};

class Reply {
 public:
  virtual ~Reply() = default;

  // The whole answer.
  virtual std::string whole(const CallSummary& summary) = 0;

  // The events of a stream, each complete with its empty line. Any may be empty.
  virtual std::string start(int choices, int64_t prompt_tokens) = 0;
  virtual std::string parts(int choice, std::span<const OutputEvent> parts,
                            std::span<const SampledToken> tokens) = 0;
  virtual std::string choice_end(int choice, const GenerationResult& result,
                                 std::span<const SampledToken> tokens) = 0;
  virtual std::string end(const CallSummary& summary) = 0;
  virtual std::string progress(const PromptProgress& progress);
  virtual std::string error(const ApiError& error);
  virtual std::string ping() const { return ": ping\n\n"; }
  virtual bool anthropic() const { return false; }
};

std::unique_ptr<Reply> make_chat_reply(const Call& call, const ServedModel& model);
std::unique_ptr<Reply> make_completion_reply(const Call& call, const ServedModel& model);
std::unique_ptr<Reply> make_messages_reply(const Call& call, const ServedModel& model);
std::unique_ptr<Reply> make_responses_reply(const Call& call, const ServedModel& model);

// Parts of several replies.

// Strict JSON: bytes that are no UTF-8 become U+FFFD, numbers that are none null.
std::string dump(const OrderedJson& value);
std::string sse(const OrderedJson& value);
// With the event's name, which is the member "type" of the value.
std::string named_sse(const OrderedJson& value);
OrderedJson usage_json(const CallSummary& summary);
OrderedJson timings_json(const Timings& timings);
// [{"position", "read": [{"position", "layers": [share, ...]}, ...]}, ...] of the tokens.
OrderedJson selection_json(std::span<const SampledToken> tokens);
// Finite, so that every JSON reader takes it.
double json_logprob(float logprob);

}  // namespace tamis::server
