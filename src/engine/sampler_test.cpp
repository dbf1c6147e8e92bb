#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "base/error.h"

namespace tamis {
namespace {

std::vector<float> random_logits(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> d(0, 2);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = d(rng);
  return v;
}

int32_t one(const SamplingParams& p, const std::vector<float>& logits, TokenBits allowed = {}) {
  Sampler::Scratch scratch;
  SampledToken out;
  Sampler(p, static_cast<int64_t>(logits.size()), {}).sample(logits.data(), allowed, scratch, out);
  return out.id;
}

// The set of tokens that top-k, min-p and top-p leave, by the definitions.
std::vector<int32_t> survivors(const SamplingParams& p, const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (p.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(p.top_k)));
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) -
                     logits[static_cast<size_t>(ids[0])]) /
                    p.temperature);
  };
  std::erase_if(ids, [&](int32_t id) { return weight(id) < p.min_p; });
  double total = 0, kept = 0;
  for (const int32_t id : ids) total += weight(id);
  size_t n = 0;
  while (n < ids.size() && kept < p.top_p * total) kept += weight(ids[n++]);
  ids.resize(n);
  return ids;
}

TEST(SamplerTest, FrequenciesAreThoseOfTheSurvivors) {
  const auto logits = random_logits(50, 1);
  for (const auto& [k, min_p, top_p] : std::vector<std::tuple<int, float, float>>{
           {0, 0, 1}, {5, 0, 1}, {0, 0.1F, 1}, {0, 0, 0.6F}, {20, 0.02F, 0.9F}, {1, 0, 1}}) {
    SamplingParams p;
    p.temperature = 0.9F;
    p.top_k = k;
    p.min_p = min_p;
    p.top_p = top_p;
    const auto want = survivors(p, logits);
    double total = 0;
    for (const int32_t id : want) total += std::exp(logits[static_cast<size_t>(id)] / 0.9);
    std::map<int32_t, int> seen;
    constexpr int kDraws = 4000;
    for (int i = 0; i < kDraws; ++i) {
      p.seed = static_cast<uint64_t>(i);
      ++seen[one(p, logits)];
    }
    for (const auto& [id, n] : seen) {
      ASSERT_NE(std::find(want.begin(), want.end(), id), want.end()) << id;
    }
    for (const int32_t id : want) {
      const double share = std::exp(logits[static_cast<size_t>(id)] / 0.9) / total;
      // Five standard deviations of a binomial count, and one for the rounding.
      const double bound = 5 * std::sqrt(kDraws * share * (1 - share)) + 1;
      EXPECT_NEAR(seen[id], kDraws * share, bound) << id;
    }
  }
}

TEST(SamplerTest, GreedyTakesTheFirstOfEquals) { EXPECT_EQ(one({}, {1, 3, 2, 3}), 1); }

TEST(SamplerTest, OnlyAllowedTokensComeOut) {
  const auto logits = random_logits(130, 2);
  const std::vector<uint64_t> allowed{1ULL << 5, 1ULL << 3, 1ULL << 1};
  SamplingParams p;
  for (const float t : {0.0F, 1.0F, 50.0F}) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
      p.temperature = t;
      p.seed = seed;
      const int32_t id = one(p, logits, allowed);
      EXPECT_TRUE(id == 5 || id == 67 || id == 129) << id;
    }
  }
  EXPECT_THROW(one(p, logits, std::vector<uint64_t>(3)), InputError);
}

TEST(SamplerTest, BiasAndPenalties) {
  const std::vector<float> logits{1, 2, 3};
  SamplingParams p;
  p.logit_bias = {{0, 5.0F}};
  EXPECT_EQ(one(p, logits), 0);
  p.logit_bias = {{3, 1.0F}};
  EXPECT_THROW(one(p, logits), UsageError);
  p.logit_bias = {{-1, 1.0F}};
  EXPECT_THROW(one(p, logits), UsageError);
  p = {};
  p.presence_penalty = 1.5F;
  Sampler s(p, 3, {2});  // the prompt does not count
  Sampler::Scratch scratch;
  SampledToken out;
  std::vector<int32_t> ids;
  for (int i = 0; i < 4; ++i) {
    s.sample(logits.data(), {}, scratch, out);
    ids.push_back(out.id);
  }
  EXPECT_EQ(ids, (std::vector<int32_t>{2, 1, 2, 2}));
  p.presence_penalty = 0;
  p.frequency_penalty = 0.6F;
  Sampler f(p, 3, {});
  ids.clear();
  for (int i = 0; i < 5; ++i) {
    f.sample(logits.data(), {}, scratch, out);
    ids.push_back(out.id);
  }
  EXPECT_EQ(ids, (std::vector<int32_t>{2, 2, 1, 2, 1}));
}

TEST(SamplerTest, LogprobsAreTheModelsOwn) {
  SamplingParams p;
  p.top_logprobs = 2;
  p.logit_bias = {{0, 100.0F}};
  Sampler s(p, 3, {});
  Sampler::Scratch scratch;
  SampledToken out;
  const std::vector<float> logits{0, 0, std::log(2.0F)};
  s.sample(logits.data(), {}, scratch, out);
  EXPECT_EQ(out.id, 0);
  EXPECT_NEAR(out.logprob, std::log(0.25), 1e-6);
  ASSERT_EQ(out.top.size(), 2U);
  EXPECT_EQ(out.top[0].id, 2);
  EXPECT_EQ(out.top[1].id, 0);
  EXPECT_NEAR(out.top[0].logprob, std::log(0.5), 1e-6);
}

TEST(SamplerTest, RefusesWhatIsOutOfRange) {
  const auto refused = [](auto change) {
    SamplingParams p;
    change(p);
    EXPECT_THROW(p.check(100), UsageError);
  };
  refused([](SamplingParams& p) { p.temperature = -1; });
  refused([](SamplingParams& p) { p.temperature = NAN; });
  refused([](SamplingParams& p) { p.top_p = 0; });
  refused([](SamplingParams& p) { p.top_k = -2; });
  refused([](SamplingParams& p) { p.min_p = 2; });
  refused([](SamplingParams& p) { p.presence_penalty = 2.5F; });
  refused([](SamplingParams& p) { p.frequency_penalty = NAN; });
  refused([](SamplingParams& p) { p.logit_bias = {{1, NAN}}; });
  refused([](SamplingParams& p) { p.top_logprobs = 21; });
}

// A log-probability that nobody wants is not computed, and nothing else changes; a guess is what
// the token would be.
TEST(SamplerTest, WithoutLogprobsTheTokensAreTheSame) {
  constexpr int64_t kVocab = 500;
  std::vector<float> logits(kVocab);
  for (const float temperature : {0.0F, 0.8F}) {
    SamplingParams params;
    params.temperature = temperature;
    params.seed = 9;
    Sampler with(params, kVocab, {});
    params.logprob = false;
    Sampler without(params, kVocab, {});
    Sampler::Scratch scratch;
    for (int i = 0; i < 50; ++i) {
      for (size_t v = 0; v < logits.size(); ++v) {
        logits[v] = static_cast<float>((v * 7919 + static_cast<size_t>(i) * 104729) % 997) / 80;
      }
      SampledToken a, b;
      const int32_t guess = without.guess(logits.data(), {}, scratch, 0);
      with.sample(logits.data(), {}, scratch, a);
      without.sample(logits.data(), {}, scratch, b);
      EXPECT_EQ(a.id, b.id);
      EXPECT_EQ(a.id, guess);
      EXPECT_LT(a.logprob, 0);
      EXPECT_EQ(b.logprob, 0);
    }
  }
}

// Then a device may look for the largest logit, and steps are counted all the same.
TEST(SamplerTest, TheLargestIsEnoughForGreedyAlone) {
  SamplingParams greedy;
  greedy.logprob = false;
  EXPECT_TRUE(Sampler(greedy, 50, {}).takes_largest());
  const auto refused = [&](auto change) {
    SamplingParams p = greedy;
    change(p);
    return !Sampler(p, 50, {1}).takes_largest();
  };
  EXPECT_TRUE(refused([](SamplingParams& p) { p.temperature = 1; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.logprob = true; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.top_logprobs = 1; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.logit_bias = {{3, 1.0F}}; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.repetition_penalty = 1.1F; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.presence_penalty = 1; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.frequency_penalty = 1; }));
  SampledToken out;
  Sampler taker(greedy, 50, {});
  taker.take(17, out);
  EXPECT_EQ(out.id, 17);
}

}  // namespace
}  // namespace tamis
