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

void SamplingParams::check() const {
  want(temperature >= 0 && temperature <= 100, "temperature", "0 to 100");
  want(top_p > 0 && top_p <= 1, "top_p", "above 0, at most 1");
  want(top_k >= 0, "top_k", "0 (all) or more");
  want(min_p >= 0 && min_p <= 1, "min_p", "0 to 1");
  want(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty",
       "above 0, at most 100");
  want(top_logprobs >= 0 && top_logprobs <= 20, "top_logprobs", "0 to 20");
}

Sampler::Sampler(const SamplingParams& params, int64_t vocab_size,
                 const std::vector<int32_t>& prompt)
    : params_(params),
      candidates_(static_cast<size_t>(vocab_size)),
      seen_(static_cast<size_t>(vocab_size)) {
  params_.check();
  for (const int32_t id : prompt) seen_[static_cast<size_t>(id)] = 1;
}

void Sampler::apply_penalty() {
  if (params_.repetition_penalty == 1) return;
  for (Candidate& c : candidates_) {
    if (seen_[static_cast<size_t>(c.id)] == 0) continue;
    c.logit =
        c.logit > 0 ? c.logit / params_.repetition_penalty : c.logit * params_.repetition_penalty;
  }
}

int32_t Sampler::draw(uint64_t step) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  if (params_.temperature == 0) {
    return std::min_element(candidates_.begin(), candidates_.end(), better)->id;
  }
  // Sorting all costs little beside the model, and makes the draw a fixed function of the logits.
  std::sort(candidates_.begin(), candidates_.end(), better);
  size_t n = candidates_.size();
  if (params_.top_k > 0) n = std::min(n, static_cast<size_t>(params_.top_k));
  const double top = candidates_.front().logit;
  const auto weight = [&](size_t i) {
    return std::exp((candidates_[i].logit - top) / params_.temperature);
  };
  while (n > 1 && weight(n - 1) < params_.min_p) --n;
  double total = 0;
  for (size_t i = 0; i < n; ++i) total += weight(i);
  double kept = 0;
  size_t count = 0;
  while (count < n && kept < params_.top_p * total) kept += weight(count++);
  double target = uniform(params_.seed, step) * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    target -= weight(i);
    if (target < 0) return candidates_[i].id;
  }
  return candidates_[count - 1].id;
}

void Sampler::report(const float* logits, SampledToken& out) const {
  const auto vocab = static_cast<int64_t>(candidates_.size());
  const double top = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(logits[v] - top);
  const double log_sum = std::log(sum) + top;
  out.logprob = static_cast<float>(logits[out.id] - log_sum);
  out.top.clear();
  if (params_.top_logprobs == 0) return;
  std::vector<int32_t> ids(static_cast<size_t>(vocab));
  for (int64_t v = 0; v < vocab; ++v) ids[static_cast<size_t>(v)] = static_cast<int32_t>(v);
  const auto n = std::min(params_.top_logprobs, vocab);
  std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    out.top.push_back({id, static_cast<float>(logits[id] - log_sum)});
  }
}

void Sampler::sample(const float* logits, SampledToken& out) {
  for (size_t i = 0; i < candidates_.size(); ++i) {
    candidates_[i] = {logits[i], static_cast<int32_t>(i)};
  }
  apply_penalty();
  out.id = draw(step_++);
  seen_[static_cast<size_t>(out.id)] = 1;
  report(logits, out);
}

}  // namespace tamis
