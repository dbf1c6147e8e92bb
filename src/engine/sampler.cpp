#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"

namespace tamis {
namespace {

// A uniform number in [0, 1): splitmix64 of the counter, 53 bits.
double uniform(uint64_t seed, uint64_t step) {
  uint64_t x = seed + (step + 1) * 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

void want(bool ok, const char* name, const char* range) {
  if (!ok) throw UsageError(std::string(name) + ": want " + range);
}

}  // namespace

void SamplingParams::check(int64_t vocab_size) const {
  want(temperature >= 0 && temperature <= 100, "temperature", "0 to 100");
  want(top_p > 0 && top_p <= 1, "top_p", "above 0, at most 1");
  want(top_k >= 0, "top_k", "0 (all) or more");
  want(min_p >= 0 && min_p <= 1, "min_p", "0 to 1");
  want(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty",
       "above 0, at most 100");
  want(presence_penalty >= -2 && presence_penalty <= 2, "presence_penalty", "-2 to 2");
  want(frequency_penalty >= -2 && frequency_penalty <= 2, "frequency_penalty", "-2 to 2");
  for (const auto& [id, bias] : logit_bias) {
    want(bias >= -100 && bias <= 100, "logit_bias", "-100 to 100");
    want(id >= 0 && id < vocab_size, "logit_bias", "token ids of the vocabulary");
  }
  want(top_logprobs >= 0 && top_logprobs <= 20, "top_logprobs", "0 to 20");
}

Sampler::Sampler(const SamplingParams& params, int64_t vocab_size,
                 const std::vector<int32_t>& prompt)
    : params_(params), vocab_size_(vocab_size) {
  params_.check(vocab_size);
  const auto vocab = static_cast<size_t>(vocab_size);
  if (params_.repetition_penalty != 1) {
    seen_.resize(vocab);
    for (const int32_t id : prompt) seen_[static_cast<size_t>(id)] = 1;
  }
  if (params_.presence_penalty != 0 || params_.frequency_penalty != 0) counts_.resize(vocab);
}

// All tokens, in the order of their ids, with the bias added; then those of the mask alone.
void Sampler::gather(const float* logits, TokenBits allowed, Scratch& all) const {
  all.resize(static_cast<size_t>(vocab_size_));
  for (size_t i = 0; i < all.size(); ++i) all[i] = {logits[i], static_cast<int32_t>(i)};
  for (const auto& [id, bias] : params_.logit_bias) all[static_cast<size_t>(id)].logit += bias;
  penalise(all);
  if (allowed.empty()) return;
  std::erase_if(all, [&](const Candidate& c) {
    return (allowed[static_cast<size_t>(c.id) / 64] >> (c.id % 64) & 1) == 0;
  });
  if (all.empty()) throw InputError("the constraint allows no token here");
}

void Sampler::penalise(Scratch& all) const {
  const float r = params_.repetition_penalty;
  for (size_t i = 0; i < seen_.size(); ++i) {
    if (seen_[i] != 0) all[i].logit = all[i].logit > 0 ? all[i].logit / r : all[i].logit * r;
  }
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] == 0) continue;
    all[i].logit -=
        params_.presence_penalty + params_.frequency_penalty * static_cast<float>(counts_[i]);
  }
}

// The candidates that top-k, min-p and top-p leave, best first, in front; without these all of
// them, in the order of their ids. One order for each set of parameters: the draw depends on it.
int32_t Sampler::draw(Scratch& all, uint64_t step) const {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const Candidate best = *std::min_element(all.begin(), all.end(), better);
  if (params_.temperature == 0) return best.id;
  const auto weight = [&](const Candidate& c) {
    return std::exp((static_cast<double>(c.logit) - best.logit) / params_.temperature);
  };
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < all.size()) {
    const auto end = all.begin() + params_.top_k;
    std::nth_element(all.begin(), end, all.end(), better);
    all.erase(end, all.end());
    std::sort(all.begin(), all.end(), better);
  }
  if (params_.min_p > 0) {
    std::erase_if(all, [&](const Candidate& c) { return weight(c) < params_.min_p; });
  }
  double kept = 0;
  for (const Candidate& c : all) kept += weight(c);
  size_t count = all.size();
  if (params_.top_p < 1) {
    // A heap gives the best ones in order; few are needed where the model is sure.
    const double wanted = params_.top_p * kept;
    const auto worse = [&](const Candidate& a, const Candidate& b) { return better(b, a); };
    std::make_heap(all.begin(), all.end(), worse);
    kept = 0;
    for (count = 0; count < all.size() && kept < wanted; ++count) {
      std::pop_heap(all.begin(), all.end() - static_cast<int64_t>(count), worse);
      kept += weight(all[all.size() - 1 - count]);
    }
    std::reverse(all.begin(), all.end());
  }
  double target = uniform(params_.seed, step) * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    target -= weight(all[i]);
    if (target < 0) return all[i].id;
  }
  return all[count - 1].id;
}

void report_logprobs(const float* logits, int64_t vocab_size, int64_t top, SampledToken& out) {
  const double best = *std::max_element(logits, logits + vocab_size);
  double sum = 0;
  for (int64_t v = 0; v < vocab_size; ++v) sum += std::exp(logits[v] - best);
  const double log_sum = std::log(sum) + best;
  out.logprob = static_cast<float>(logits[out.id] - log_sum);
  out.top.clear();
  if (top == 0) return;
  std::vector<int32_t> ids(static_cast<size_t>(vocab_size));
  for (int64_t v = 0; v < vocab_size; ++v) ids[static_cast<size_t>(v)] = static_cast<int32_t>(v);
  const auto n = std::min(top, vocab_size);
  std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    out.top.push_back({id, static_cast<float>(logits[id] - log_sum)});
  }
}

bool Sampler::changes_logits() const {
  return !params_.logit_bias.empty() || !seen_.empty() || !counts_.empty();
}

bool Sampler::takes_largest() const {
  return params_.temperature == 0 && !changes_logits() && !params_.logprob &&
         params_.top_logprobs == 0;
}

void Sampler::take(int32_t id, SampledToken& out) {
  out.id = id;
  ++step_;
}

int32_t Sampler::choose(const float* logits, TokenBits allowed, Scratch& all, uint64_t step) const {
  if (params_.temperature == 0 && allowed.empty() && !changes_logits()) {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab_size_) - logits);
  }
  gather(logits, allowed, all);
  return draw(all, step);
}

int32_t Sampler::guess(const float* logits, TokenBits allowed, Scratch& scratch,
                       uint64_t ahead) const {
  return choose(logits, allowed, scratch, step_ + ahead);
}

void Sampler::sample(const float* logits, TokenBits allowed, Scratch& scratch, SampledToken& out) {
  out.id = choose(logits, allowed, scratch, step_);
  ++step_;
  if (!seen_.empty()) seen_[static_cast<size_t>(out.id)] = 1;
  if (!counts_.empty()) ++counts_[static_cast<size_t>(out.id)];
  if (!params_.logprob && params_.top_logprobs == 0) return;
  report_logprobs(logits, vocab_size_, params_.top_logprobs, out);
}

}  // namespace tamis
