// Log-probabilities of a prompt's own tokens (`echo` with `logprobs` of a completion request), one
// chunk at a time between the steps of an engine, on a cache of its own.
//
//   scorer.start(prompt, top);
//   while (!scorer.step()) { ... }
//   scorer.tokens();   // one for each token of the prompt but the first
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace tamis {

class PromptScorer {
 public:
  // Address space for max_context tokens is reserved at once; on a device the memory is taken.
  // DeviceError if it cannot be had.
  PromptScorer(const LoadedModel& model, KernelContext& context, const EngineOptions& options);
  ~PromptScorer();
  PromptScorer(const PromptScorer&) = delete;
  PromptScorer& operator=(const PromptScorer&) = delete;

  // InputError for an empty prompt, ids outside the vocabulary, or more than max_context tokens.
  void start(std::vector<int32_t> prompt, int64_t top_logprobs);
  bool busy() const { return busy_; }
  // One forward pass; true when the prompt is done. InputError naming the layer whose result was
  // not a finite number; the scorer is then free again.
  bool step();

  const std::vector<SampledToken>& tokens() const { return tokens_; }
  // After the last step: the token that follows the prompt.
  SampledToken next(const SamplingParams& params) const;

 private:
  void run_chunk(int64_t begin, int64_t n);
  void stop();

  const LoadedModel& model_;
  KernelContext& context_;
  std::unique_ptr<Selector> selector_;
  PagedCache cache_;
  Activations act_;
  int64_t max_context_ = 0;

  bool busy_ = false;
  std::vector<int32_t> prompt_;
  int64_t top_ = 0;
  CachedSequence sequence_;
  std::vector<SampledToken> tokens_;
  std::vector<float> logits_;
  int64_t last_rows_ = 0;
};

}  // namespace tamis
