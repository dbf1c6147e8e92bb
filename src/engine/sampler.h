// From logits to a token: penalties, temperature, top-k, min-p, top-p, then a draw.
//
// The draw of step i is a function of (seed, i) and the logits alone, so a request gives the same
// tokens whatever runs beside it.
#pragma once

#include <cstdint>
#include <vector>

namespace tamis {

struct SamplingParams {
  float temperature = 0;         // 0: the largest logit, the first of equals
  float top_p = 1;               // smallest set of tokens whose probabilities reach top_p
  int64_t top_k = 0;             // 0: all
  float min_p = 0;               // drop tokens below min_p times the largest probability
  float repetition_penalty = 1;  // divides positive, multiplies negative logits of seen tokens
  uint64_t seed = 0;
  int64_t top_logprobs = 0;  // alternatives to report beside each token

  // UsageError naming the parameter and its range.
  void check() const;
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;  // log softmax of the model's own logits, before any of the above
};

struct SampledToken {
  int32_t id = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // best first; ties by lower id
};

class Sampler {
 public:
  // `prompt` counts as seen for the repetition penalty.
  Sampler(const SamplingParams& params, int64_t vocab_size, const std::vector<int32_t>& prompt);

  // logits [vocab_size], finite. Allocates nothing unless top_logprobs is set.
  void sample(const float* logits, SampledToken& out);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  void apply_penalty();
  int32_t draw(uint64_t step);
  void report(const float* logits, SampledToken& out) const;

  SamplingParams params_;
  std::vector<Candidate> candidates_;
  std::vector<uint8_t> seen_;
  uint64_t step_ = 0;
};

}  // namespace tamis
