// From logits to a token: bias, penalties, the mask of a constraint, temperature, top-k, min-p,
// top-p, then a draw (kernels/sample/sample.h), by the host or by a device.
//
// The draw of step i is a function of (seed, i) and the logits alone, so a request gives the same
// tokens whatever runs beside it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/token_reads.h"
#include "kernels/sample/sample.h"

namespace tamis {

struct SamplingParams {
  float temperature = 0;         // 0: the largest logit, the first of equals
  float top_p = 1;               // smallest set of tokens whose probabilities reach top_p
  int64_t top_k = 0;             // 0: all
  float min_p = 0;               // drop tokens below min_p times the largest probability
  float repetition_penalty = 1;  // divides positive, multiplies negative logits of seen tokens
  float presence_penalty = 0;    // subtracted once from tokens of the answer so far
  float frequency_penalty = 0;   // subtracted for each time a token is in the answer so far
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logits of single tokens
  uint64_t seed = 0;
  bool logprob = true;       // report the token's log-probability, which takes the whole vocabulary
  int64_t top_logprobs = 0;  // alternatives to report beside each token

  // UsageError naming the parameter and its range.
  void check(int64_t vocab_size = INT64_MAX) const;
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;  // log softmax of the model's own logits, before any of the above
};

struct SampledToken {
  int32_t id = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // best first; ties by lower id
  TokenReads reads = {};          // with Request::top_reads
};

// Fills in the log-probability of out.id and the `top` best ids. logits [vocab_size], finite.
void report_logprobs(const float* logits, int64_t vocab_size, int64_t top, SampledToken& out);

// A bit for each token: word id / 64, bit id % 64.
using TokenBits = std::span<const uint64_t>;

class Sampler {
 public:
  // Shared by the samplers of one engine; one entry a token.
  using Scratch = std::vector<SampleCandidate>;

  // `prompt` counts as seen for the repetition penalty. UsageError from check(), and for a bias on
  // an id outside the vocabulary.
  Sampler(const SamplingParams& params, int64_t vocab_size, const std::vector<int32_t>& prompt);

  // logits [vocab_size], finite. Only tokens of `allowed` may come out; empty: all. InputError if
  // it has none. Allocates nothing after the first call unless top_logprobs is set.
  void sample(const float* logits, TokenBits allowed, Scratch& scratch, SampledToken& out);

  // Whether sample() gives the first of the largest logits, and nothing but its id: then take() of
  // that id does the same without the logits. A mask is the caller's to look for.
  bool takes_largest() const;
  // Whether its id is all that is wanted of a token: then draw() says how a device finds the one
  // that sample() would give, and take() of that id does the rest.
  bool wants_id_alone() const { return !params_.logprob && params_.top_logprobs == 0; }
  // Of the token `ahead` calls from now; its edits are appended to the list.
  SampleRow draw(uint64_t ahead, std::vector<SampleEdit>& edits) const;
  // Whether what the tokens are changes the logits of later ones.
  bool remembers_tokens() const;
  void take(int32_t id, SampledToken& out);

  // The token that sample() would give, `ahead` calls from now, if these were its logits: a guess
  // that comes true as often as the two distributions overlap.
  int32_t guess(const float* logits, TokenBits allowed, Scratch& scratch, uint64_t ahead) const;

 private:
  int32_t choose(const float* logits, TokenBits allowed, Scratch& all, uint64_t step) const;
  void gather(const float* logits, TokenBits allowed, Scratch& all) const;
  SampleRow row(uint64_t step) const;
  bool changes_logits() const;
  SampleEdit& edit(int32_t id);
  void remember(int32_t id);

  SamplingParams params_;
  int64_t vocab_size_;
  std::vector<SampleEdit> edits_;  // an id's bias, and its part of prompt and answer
  std::vector<int32_t> edit_of_;   // by id, -1: none; empty if no logit is changed
  uint64_t step_ = 0;
};

}  // namespace tamis
