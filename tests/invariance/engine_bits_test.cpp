// A request's tokens and log-probabilities are the same bits alone, among 64 others, after a cache
// hit, after preemptions, beside requests that attend in other ways, and after a failed pass.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <random>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/prefix_file.h"
#include "invariance/runner.h"
#include "support/fewer_cases.h"
#include "text/grammar/constraint.h"

namespace tamis {
namespace {

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  FinishReason finish = FinishReason::kNone;
  std::string error;
  int64_t cached = 0;
};

bool same_bits(const Answer& a, const Answer& b) {
  return a.ids == b.ids && a.logprobs.size() == b.logprobs.size() && a.finish == b.finish &&
         std::memcmp(a.logprobs.data(), b.logprobs.data(), a.logprobs.size() * sizeof(float)) == 0;
}

class EngineBits : public ::testing::TestWithParam<Precision> {
 protected:
  EngineBits() : context_(2, test_backend()) {
    LoadOptions o;
    o.model.precision = GetParam();
    model_ = std::make_unique<LoadedModel>(
        std::string(TAMIS_SOURCE_DIR) + "/tests/golden/model/d2_fp8_ragged", o, single_group());
    options_.policy.topk = model_->config().index_topk;
    options_.cache.pages = 256;
    options_.audit = true;
  }

  Request request(uint32_t seed, int64_t prompt, int64_t answer) const {
    Request r;
    r.prompt = random_ids(prompt, model_->config().vocab_size, seed);
    r.max_tokens = answer;
    r.sampling.temperature = 0.9F;
    r.sampling.seed = seed;
    return r;
  }

  std::map<int64_t, Answer> run(Engine& engine, const std::vector<Request>& requests) {
    std::vector<int64_t> numbers;
    for (const Request& r : requests) numbers.push_back(engine.submit(r));
    return drain(engine);
  }
  static std::map<int64_t, Answer> drain(Engine& engine) {
    std::map<int64_t, Answer> answers;
    std::vector<TokenEvent> events;
    for (int steps = 0; !engine.idle(); ++steps) {
      if (steps > 20000) throw std::runtime_error("the engine makes no progress");
      engine.step(events);
      for (const TokenEvent& e : events) {
        Answer& a = answers[e.request];
        if (e.token.id >= 0) {
          a.ids.push_back(e.token.id);
          a.logprobs.push_back(e.token.logprob);
        }
        a.finish = e.finish;
        a.error = e.error;
        a.cached = e.cached_tokens;
      }
    }
    return answers;
  }
  Answer alone(const Request& r) {
    Engine engine(*model_, context_, options_);
    return run(engine, {r}).begin()->second;
  }

  KernelContext context_;
  std::unique_ptr<LoadedModel> model_;
  EngineOptions options_;
};

// Greedy requests that report no log-probabilities need only the largest logit of a row, which a
// device finds by itself; unless another of the pass needs more.
TEST_P(EngineBits, GreedyTokensNeedNoLogits) {
  std::vector<Request> requests;
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    requests.push_back(request(seed, 20 * seed, 12));
    requests.back().sampling.temperature = 0;
  }
  std::vector<Request> bare = requests, mixed;
  for (Request& r : bare) r.sampling.logprob = false;
  mixed = bare;
  mixed.push_back(request(9, 30, 12));
  std::vector<std::vector<std::vector<int32_t>>> ids;
  for (const auto& list : {requests, bare, mixed}) {
    Engine engine(*model_, context_, options_);
    ids.emplace_back();
    for (const auto& [number, answer] : run(engine, list)) ids.back().push_back(answer.ids);
    ASSERT_EQ(ids.back().size(), list.size());
    ids.back().resize(3);
    EXPECT_EQ(ids.back(), ids.front());
  }
  for (const auto& answer : ids.front()) EXPECT_EQ(answer.size(), 12U);
}

// A device draws what the host draws from the same logits; so with the requests' neighbours too.
TEST_P(EngineBits, DrawnTokensNeedNoLogits) {
  std::vector<Request> requests;
  for (uint32_t seed = 0; seed < 16; ++seed) {
    Request r = request(seed, 1 + 9 * seed, 16);
    if (seed % 8 == 7) r.sampling.temperature = 0;
    r.sampling.top_p = seed % 2 == 0 ? 1.0F : 0.7F;
    r.sampling.top_k = seed % 3 == 0 ? 0 : 20;
    r.sampling.min_p = seed % 5 == 0 ? 0.01F : 0.0F;
    r.sampling.repetition_penalty = seed % 4 == 1 ? 1.2F : 1.0F;
    r.sampling.presence_penalty = seed % 4 == 2 ? 0.5F : 0.0F;
    r.sampling.frequency_penalty = seed % 4 == 3 ? 0.3F : 0.0F;
    if (seed % 6 == 5) r.sampling.logit_bias = {{3, 4.0F}, {7, -100.0F}, {3, 2.5F}};
    requests.push_back(r);
  }
  std::vector<Request> bare = requests;
  for (Request& r : bare) r.sampling.logprob = false;
  Engine with(*model_, context_, options_), without(*model_, context_, options_);
  auto want = run(with, requests), got = run(without, bare);
  for (const auto& [number, answer] : want) {
    EXPECT_EQ(got[number].ids, answer.ids) << number;
    EXPECT_EQ(answer.ids.size(), 16U);
  }
  EXPECT_EQ(alone(bare[5]).ids, want[5].ids);
}

TEST_P(EngineBits, Among64Others) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 65; ++i) requests.push_back(request(i, 1 + i * 7 % 120, 1 + i % 40));
  Engine engine(*model_, context_, options_);
  auto answers = run(engine, requests);
  for (const size_t i : {0U, 5U, 17U, 33U, 64U}) {
    EXPECT_TRUE(same_bits(answers[static_cast<int64_t>(i)], alone(requests[i]))) << i;
  }
  const EngineStats s = engine.stats();
  EXPECT_EQ(s.finished[static_cast<size_t>(FinishReason::kLength)], 65);
  EXPECT_EQ(s.running + s.waiting + s.pages_used, 0);
}

TEST_P(EngineBits, Among256Others) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 257; ++i) requests.push_back(request(i, 1 + i % 9, 4 + i % 3));
  EngineOptions o = options_;
  o.max_sequences = 257;
  o.cache.pages = 300;
  o.chunk = 4096;
  Engine engine(*model_, context_, o);
  auto answers = run(engine, requests);
  for (const size_t i : {0U, 100U, 256U}) {
    EXPECT_TRUE(same_bits(answers[static_cast<int64_t>(i)], alone(requests[i]))) << i;
  }
  EXPECT_EQ(engine.stats().finished[static_cast<size_t>(FinishReason::kLength)], 257);
}

TEST_P(EngineBits, AfterACacheHit) {
  const Request first = request(1, 150, 60);
  Engine engine(*model_, context_, options_);
  const Answer cold = run(engine, {first})[0];
  const Answer hit = run(engine, {first})[1];
  EXPECT_GE(hit.cached, 128);
  EXPECT_TRUE(same_bits(hit, cold));
  // The next turn of a conversation: the answer comes back as part of the prompt.
  Request next = first;
  next.prompt.insert(next.prompt.end(), cold.ids.begin(), cold.ids.end());
  const auto more = random_ids(20, model_->config().vocab_size, 99);
  next.prompt.insert(next.prompt.end(), more.begin(), more.end());
  const Answer turn = run(engine, {next})[2];
  // All but the answer's last token, which nobody fed to the model; the native path computes
  // answers in another way than prompts, and keeps prompts only.
  EXPECT_EQ(turn.cached, GetParam() == Precision::kExact ? 209 : 150);
  EXPECT_TRUE(same_bits(turn, alone(next)));
  // Another tenant learns nothing.
  Request other = first;
  other.cache_salt = "somebody else";
  const Answer salted = run(engine, {other})[3];
  EXPECT_EQ(salted.cached, 0);
  EXPECT_TRUE(same_bits(salted, cold));
}

// What a file of kept prefixes brings to a new engine.
TEST_P(EngineBits, AfterARestart) {
  const Request first = request(1, 150, 60);
  const PrefixFile file{::testing::TempDir() + "bits-prefixes",
                        prefix_maker(*model_, options_.cache, "")};
  Answer cold;
  {
    Engine engine(*model_, context_, options_);
    cold = run(engine, {first})[0];
    EXPECT_GE(engine.save_prefixes(file), 2);
  }
  Engine engine(*model_, context_, options_);
  EXPECT_EQ(engine.load_prefixes(file).trouble, "");
  const Answer hit = run(engine, {first})[0];
  EXPECT_GE(hit.cached, 128);
  EXPECT_TRUE(same_bits(hit, cold));
  // Other formats are another maker.
  CacheOptions other = options_.cache;
  other.latent_format = KvFormat::kBF16;
  EXPECT_NE(prefix_maker(*model_, other, ""), file.made_by);
  EXPECT_NE(prefix_maker(*model_, options_.cache, "key"), file.made_by);
  std::remove(file.path.c_str());
}

TEST_P(EngineBits, AfterPreemptions) {
  std::vector<Request> requests;
  const uint32_t count = fewer(16U, 8U);
  for (uint32_t i = 0; i < count; ++i) requests.push_back(request(i, 60 + i, fewer(150, 75)));
  EngineOptions o = options_;
  o.cache.pages = fewer(12, 7);  // of 64 that they come to need, or of 24
  for (const bool prefix_cache : {true, false}) {
    o.prefix_cache = prefix_cache;
    Engine engine(*model_, context_, o);
    auto answers = run(engine, requests);
    EXPECT_GT(engine.stats().preemptions, 4);
    for (const uint32_t i : {0U, 7U, 15U}) {
      if (i >= count) continue;
      EXPECT_TRUE(same_bits(answers[static_cast<int64_t>(i)], alone(requests[i]))) << i;
    }
  }
}

TEST_P(EngineBits, BesideOtherWaysOfAttending) {
  std::vector<Request> requests;
  for (const SelectionPolicy& p : {SelectionPolicy{AttentionKind::kSparse, 16, 0},
                                   SelectionPolicy{AttentionKind::kDense, 0, 0},
                                   SelectionPolicy{AttentionKind::kWindow, 20, 0},
                                   SelectionPolicy{AttentionKind::kSparse, 40, 0},
                                   SelectionPolicy{AttentionKind::kRandom, 8, 3}}) {
    for (uint32_t i = 0; i < 2; ++i) {
      requests.push_back(request(i, 100, 20));
      requests.back().attention = p;
    }
  }
  Engine engine(*model_, context_, options_);
  auto answers = run(engine, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_TRUE(same_bits(answers[static_cast<int64_t>(i)], alone(requests[i]))) << i;
    if (i >= 2) {  // the control: ways differ
      EXPECT_NE(answers[static_cast<int64_t>(i)].logprobs,
                answers[static_cast<int64_t>(i) - 2].logprobs);
    }
  }
  // Nor does one way start from what another has kept.
  Request dense = requests[0];
  dense.attention = SelectionPolicy{AttentionKind::kSparse, 17, 0};
  EXPECT_EQ(run(engine, {dense}).begin()->second.cached, 0);
}

TEST_P(EngineBits, PrioritiesGoFirstAndPutOthersBack) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) requests.push_back(request(i, 100, 40));
  EngineOptions o = options_;
  o.max_sequences = 2;
  Engine engine(*model_, context_, o);
  for (const Request& r : requests) engine.submit(r);
  std::vector<TokenEvent> events;
  for (int i = 0; i < 5; ++i) engine.step(events);
  Request urgent = request(77, 90, 10);
  urgent.priority = 1;
  const int64_t number = engine.submit(urgent);
  std::vector<int64_t> order;
  Answer got;
  while (!engine.idle()) {
    engine.step(events);
    for (const TokenEvent& e : events) {
      if (e.finish != FinishReason::kNone) order.push_back(e.request);
      if (e.request != number) continue;
      got.ids.push_back(e.token.id);
      got.logprobs.push_back(e.token.logprob);
      got.finish = e.finish;
    }
  }
  EXPECT_EQ(order.front(), number);
  EXPECT_GE(engine.stats().preemptions, 1);
  EXPECT_TRUE(same_bits(got, alone(urgent)));
}

TEST_P(EngineBits, AFailedPassEndsOnlyWhoFailsAlone) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 8; ++i) requests.push_back(request(i, 50, 12));
  EngineOptions o = options_;
  o.before_pass = [](const std::vector<int64_t>& pass) {
    if (std::find(pass.begin(), pass.end(), 3) != pass.end()) throw DeviceError("planted");
  };
  Engine engine(*model_, context_, o);
  auto answers = run(engine, requests);
  for (int64_t i = 0; i < 8; ++i) {
    if (i == 3) {
      EXPECT_EQ(answers[i].finish, FinishReason::kError);
      EXPECT_EQ(answers[i].error, "a forward pass failed");
    } else {
      EXPECT_TRUE(same_bits(answers[i], alone(requests[static_cast<size_t>(i)]))) << i;
    }
  }
}

// Submits, cancels and steps at random on a small pool; the books are audited after every step.
TEST_P(EngineBits, RandomLifeLeavesNoPageBehind) {
  EngineOptions o = options_;
  o.cache.pages = 10;
  o.max_context = 300;
  o.chunk = 48;
  o.max_waiting = 20;
  Engine engine(*model_, context_, o);
  std::mt19937 rng(5);
  std::vector<TokenEvent> events;
  std::map<int64_t, int> ended;
  int64_t submitted = 0;
  for (int i = 0; i < fewer(400, 120); ++i) {
    const auto pick = rng() % 10;
    if (pick < 3 && !engine.queue_full()) {
      Request r = request(static_cast<uint32_t>(rng() % 7), 1 + static_cast<int64_t>(rng() % 200),
                          1 + static_cast<int64_t>(rng() % 90));
      r.priority = static_cast<int64_t>(rng() % 3);
      if (rng() % 4 == 0) r.attention = SelectionPolicy{AttentionKind::kDense, 0, 0};
      engine.submit(r);
      ++submitted;
    } else if (pick == 3 && submitted > 0) {
      engine.cancel(static_cast<int64_t>(rng() % static_cast<uint64_t>(submitted)));
    }
    engine.step(events);
    for (const TokenEvent& e : events) ended[e.request] += e.finish != FinishReason::kNone ? 1 : 0;
  }
  for (const auto& [request, answer] : drain(engine)) {
    ended[request] += answer.finish != FinishReason::kNone ? 1 : 0;
  }
  for (int64_t i = 0; i < submitted; ++i) EXPECT_EQ(ended[i], 1) << i;
  EXPECT_EQ(engine.cache().used_pages(), 0);
  const EngineStats s = engine.stats();
  EXPECT_GT(s.preemptions, 0);
  EXPECT_GT(s.finished[static_cast<size_t>(FinishReason::kCancelled)], 0);
  EXPECT_GT(s.finished[static_cast<size_t>(FinishReason::kLength)], 0);
}

TEST_P(EngineBits, RefusesWhatItCannotServe) {
  EngineOptions o = options_;
  o.max_waiting = 2;
  Engine engine(*model_, context_, o);
  Request r = request(1, 10, 5);
  r.attention = SelectionPolicy{AttentionKind::kSparse, 0, 0};
  EXPECT_THROW(engine.submit(r), InputError);
  r.attention->topk = 1LL << 40;
  EXPECT_THROW(engine.submit(r), InputError);
  r = request(1, 10, 5);
  r.prompt[3] = static_cast<int32_t>(model_->config().vocab_size);
  EXPECT_THROW(engine.submit(r), InputError);
  r = request(1, 10, 0);
  EXPECT_THROW(engine.submit(r), InputError);
  r = request(1, 10, 5);
  engine.submit(r);
  engine.submit(r);
  EXPECT_TRUE(engine.queue_full());
  EXPECT_THROW(engine.submit(r), UsageError);
  EXPECT_TRUE(engine.progress(0).waiting);
  EXPECT_EQ(engine.progress(9).prompt_tokens, 0);
  drain(engine);
}

// Constrained and free requests in one batch: the constrained ones give what they promise, the
// same bits as alone, also when they were put back in between.
TEST(EngineConstraint, HoldsInABatchAndAfterPreemptions) {
  const std::string folder = std::string(TAMIS_SOURCE_DIR) + "/models/tamis-mini";
  const LoadedModel model(folder, {}, single_group());
  const Tokenizer tokenizer = Tokenizer::load(folder + "/tokenizer.json");
  KernelContext context(2, test_backend());
  ConstraintSpec spec;
  spec.answer = ConstraintSpec::Answer::kSchema;
  spec.text =
      R"({"type":"array","items":{"enum":["red","green","blue"]},"minItems":3,"maxItems":3})";
  const auto constraint =
      compile_constraint(spec, std::make_shared<TokenTrie>(tokenizer, model.config().vocab_size));
  const auto answers = [&](int64_t pages, int first, int last, int64_t* preemptions) {
    EngineOptions o;
    o.policy.topk = model.config().index_topk;
    o.cache.pages = pages;
    o.max_context = 256;
    o.audit = true;
    Engine engine(model, context, o);
    for (int i = first; i < last; ++i) {
      Request r;
      r.prompt = random_ids(60, model.config().vocab_size, static_cast<uint32_t>(i));
      r.max_tokens = 30;  // over the end of the first page, which is what puts requests back
      r.stop_ids = model.config().eos_ids;
      r.sampling.temperature = 1;
      r.sampling.seed = static_cast<uint64_t>(i);
      if (i % 2 == 0) r.constraint = constraint;
      engine.submit(r);
    }
    std::map<int64_t, std::vector<int32_t>> ids;
    std::vector<TokenEvent> events;
    while (!engine.idle()) {
      engine.step(events);
      for (const TokenEvent& e : events) {
        EXPECT_EQ(e.error, "");
        if (e.token.id >= 0) ids[e.request + first].push_back(e.token.id);
        if (e.finish != FinishReason::kNone && (e.request + first) % 2 == 0) {
          EXPECT_EQ(e.finish, FinishReason::kStop);
        }
      }
    }
    if (preemptions != nullptr) *preemptions = engine.stats().preemptions;
    return ids;
  };
  int64_t preemptions = 0;
  const auto together = answers(6, 0, 6, &preemptions);
  EXPECT_GT(preemptions, 0);
  for (const int i : {0, 2, 4}) {
    EXPECT_EQ(together.at(i), answers(64, i, i + 1, nullptr).at(i)) << i;
    const std::string text = tokenizer.decode(together.at(i), true);
    size_t quotes = 0;
    for (const char c : text) quotes += c == '"' ? 1 : 0;
    EXPECT_EQ(text.front(), '[') << text;
    EXPECT_EQ(text.back(), ']') << text;
    EXPECT_EQ(quotes, 6U) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, EngineBits,
                         ::testing::Values(Precision::kExact, Precision::kNative),
                         [](const auto& p) {
                           return p.param == Precision::kExact ? "Exact" : "Native";
                         });

}  // namespace
}  // namespace tamis
