// Whether a model finds an answer in a long prompt: exact answers in a number of cases.
//
// The prompt and the right answer are run together and every token of the answer, the end of text
// included, must be the most likely one. That is what greedy decoding would give: its first
// mistake is the first difference.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"

namespace tamis {

struct RetrievalOptions {
  SelectionPolicy policy;
  CacheOptions cache;     // pages is ignored
  int64_t forward = 512;  // tokens of one forward pass
};

// Answers one prompt after the other with the same buffers.
class AnswerChecker {
 public:
  // Prompts and answers of up to `context` tokens. UsageError if the model has fewer positions.
  AnswerChecker(KernelContext& context, const LoadedModel& model, const RetrievalOptions& options,
                int64_t tokens);
  ~AnswerChecker();
  AnswerChecker(const AnswerChecker&) = delete;

  // Tokens of the answer (with the end of text) that are the most likely ones, counted up to the
  // first that is not. InputError if a result is not finite.
  int64_t right_tokens(std::span<const int32_t> prompt, std::span<const int32_t> answer);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tamis
