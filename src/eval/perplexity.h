// How well a model predicts a text: the mean negative log-likelihood of its tokens.
//
// The text is cut into consecutive chunks of `context` tokens, each scored alone from position 0.
// The first token of a chunk has nothing before it and is not scored.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/function_ref.h"
#include "engine/loaded_model.h"
#include "engine/paged_cache.h"

namespace tamis {

struct PerplexityOptions {
  SelectionPolicy policy;
  CacheOptions cache;        // pages is ignored
  int64_t context = 4096;    // tokens of a chunk
  int64_t forward = 512;     // tokens, and rows of logits, of one forward pass
  int64_t limit_chunks = 0;  // score the first ones only; 0: all
};

// The mean over a part of the scored tokens.
struct MeanLoss {
  int64_t tokens = 0;
  double sum = 0;
  double mean() const { return tokens > 0 ? sum / static_cast<double>(tokens) : 0; }
};

// Predictions made from `first` to `last` tokens of left context.
struct PositionLoss {
  int64_t first = 0, last = 0;
  MeanLoss loss;
};

struct ChunkLoss {
  MeanLoss loss;
  std::vector<MeanLoss> by_position;  // as PerplexityResult has them
  int64_t document = 0, begin = 0;    // its first token
};

struct PerplexityResult {
  MeanLoss total;                         // nats
  std::vector<ChunkLoss> chunks;          // in order
  std::vector<PositionLoss> by_position;  // 1-255, 256-511, 512-1023, doubling
  int64_t read_tokens = 0;                // tokens of the chunks, scored or not
  double perplexity() const;
  // Of `bytes` bytes of text that the tokens read stand for.
  double bits_per_byte(int64_t bytes) const;
};

// `progress` is told of tokens as they are done. InputError for fewer than two tokens, ids outside
// the vocabulary, or a layer whose result is not finite (its number is in the message); UsageError
// for a context of less than 2 or more than the model's maximum.
PerplexityResult measure_perplexity(KernelContext& context, const LoadedModel& model,
                                    std::span<const int32_t> ids, const PerplexityOptions& options,
                                    FunctionRef<void(int64_t)> progress);
// The same of several texts: no chunk has tokens of two. A last chunk of one token is left out.
PerplexityResult measure_perplexity(KernelContext& context, const LoadedModel& model,
                                    std::span<const std::vector<int32_t>> documents,
                                    const PerplexityOptions& options,
                                    FunctionRef<void(int64_t)> progress);

}  // namespace tamis
