#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "kernels/sample/sample_weight.h"

namespace tamis {
namespace {

// 64 uniform bits: splitmix64 of the counter.
uint64_t uniform(uint64_t seed, uint64_t step) {
  uint64_t x = seed + (step + 1) * 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
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
  if (vocab_size > kMostSampled) {
    throw UsageError("sampling: want a vocabulary of at most " + std::to_string(kMostSampled) +
                     " tokens, this model has " + std::to_string(vocab_size));
  }
  if (!changes_logits()) return;
  edit_of_.assign(static_cast<size_t>(vocab_size), -1);
  for (const auto& [id, bias] : params_.logit_bias) edit(id).bias += bias;
  if (params_.repetition_penalty == 1) return;
  for (const int32_t id : prompt) edit(id).seen = 1;
}

SampleEdit& Sampler::edit(int32_t id) {
  int32_t& at = edit_of_[static_cast<size_t>(id)];
  if (at < 0) {
    at = static_cast<int32_t>(edits_.size());
    edits_.push_back({id});
  }
  return edits_[static_cast<size_t>(at)];
}

void Sampler::remember(int32_t id) {
  ++step_;
  if (params_.repetition_penalty != 1) edit(id).seen = 1;
  if (params_.presence_penalty != 0 || params_.frequency_penalty != 0) ++edit(id).count;
}

SampleRow Sampler::row(uint64_t step) const {
  SampleRow r;
  r.temperature = params_.temperature;
  r.top_p = params_.top_p;
  r.min_p = params_.min_p;
  r.repetition = params_.repetition_penalty;
  r.presence = params_.presence_penalty;
  r.frequency = params_.frequency_penalty;
  r.top_k = params_.top_k;
  r.random = uniform(params_.seed, step);
  return r;
}

SampleRow Sampler::draw(uint64_t ahead, std::vector<SampleEdit>& edits) const {
  SampleRow r = row(step_ + ahead);
  r.first_edit = static_cast<int64_t>(edits.size());
  r.edits = static_cast<int64_t>(edits_.size());
  edits.insert(edits.end(), edits_.begin(), edits_.end());
  return r;
}

// All tokens, in the order of their ids, edited; then those of the mask alone.
void Sampler::gather(const float* logits, TokenBits allowed, Scratch& all) const {
  all.resize(static_cast<size_t>(vocab_size_));
  for (size_t i = 0; i < all.size(); ++i) all[i] = {logits[i], static_cast<int32_t>(i)};
  const SampleRow penalties = row(0);
  for (const SampleEdit& e : edits_) {
    float& logit = all[static_cast<size_t>(e.id)].logit;
    logit = edited_logit(logit, e, penalties);
  }
  if (allowed.empty()) return;
  std::erase_if(all, [&](const SampleCandidate& c) {
    return (allowed[static_cast<size_t>(c.id) / 64] >> (c.id % 64) & 1) == 0;
  });
  if (all.empty()) throw InputError("the constraint allows no token here");
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

bool Sampler::remembers_tokens() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
         params_.frequency_penalty != 0;
}

bool Sampler::changes_logits() const { return !params_.logit_bias.empty() || remembers_tokens(); }

bool Sampler::takes_largest() const {
  return params_.temperature == 0 && !changes_logits() && wants_id_alone();
}

void Sampler::take(int32_t id, SampledToken& out) {
  out.id = id;
  remember(id);
}

int32_t Sampler::choose(const float* logits, TokenBits allowed, Scratch& all, uint64_t step) const {
  if (params_.temperature == 0 && allowed.empty() && !changes_logits()) {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab_size_) - logits);
  }
  gather(logits, allowed, all);
  return draw_token(all, row(step));
}

int32_t Sampler::guess(const float* logits, TokenBits allowed, Scratch& scratch,
                       uint64_t ahead) const {
  return choose(logits, allowed, scratch, step_ + ahead);
}

void Sampler::sample(const float* logits, TokenBits allowed, Scratch& scratch, SampledToken& out) {
  out.id = choose(logits, allowed, scratch, step_);
  remember(out.id);
  if (wants_id_alone()) return;
  report_logprobs(logits, vocab_size_, params_.top_logprobs, out);
}

}  // namespace tamis
