// Tokens that are guessed ahead change nothing but the number of passes: tokens, log-probabilities
// and reads are the same bits with and without, greedy and sampled, alone and among others, after
// preemptions and cache hits, under a constraint.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "base/error.h"
#include "engine/engine.h"
#include "invariance/runner.h"
#include "support/fewer_cases.h"
#include "text/grammar/constraint.h"

namespace tamis {
namespace {

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::vector<std::vector<ReadPosition>> reads;
  FinishReason finish = FinishReason::kNone;
  int64_t cached = 0;
};

void expect_same(const Answer& got, const Answer& want, size_t request) {
  EXPECT_EQ(got.ids, want.ids) << request;
  EXPECT_EQ(got.finish, want.finish) << request;
  ASSERT_EQ(got.logprobs.size(), want.logprobs.size()) << request;
  EXPECT_EQ(
      std::memcmp(got.logprobs.data(), want.logprobs.data(), want.logprobs.size() * sizeof(float)),
      0)
      << request;
}

class Speculation : public ::testing::TestWithParam<Precision> {
 protected:
  Speculation() : context_(2, test_backend()) {
    LoadOptions o;
    o.with_mtp = true;
    o.model.precision = GetParam();
    model_ = std::make_unique<LoadedModel>(
        std::string(TAMIS_SOURCE_DIR) + "/tests/golden/model/b_fp32_sparse_yarn", o,
        single_group());
    options_.policy.topk = model_->config().index_topk;
    options_.cache.pages = 256;
    options_.cache.with_mtp = true;
    options_.chunk = 64;
    options_.audit = true;
  }

  // Every other one is greedy.
  std::vector<Request> requests(uint32_t count) const {
    std::vector<Request> all;
    for (uint32_t i = 0; i < count; ++i) {
      Request r;
      r.prompt = random_ids(1 + i * 37 % 150, model_->config().vocab_size, i);
      r.max_tokens = 1 + i * 11 % 70;
      r.sampling.temperature = i % 2 == 0 ? 0.0F : 0.9F;
      r.sampling.top_p = i % 4 == 1 ? 0.8F : 1.0F;
      r.sampling.presence_penalty = i % 3 == 0 ? 0.5F : 0.0F;
      r.sampling.seed = i;
      all.push_back(r);
    }
    return all;
  }

  std::vector<Answer> run(Engine& engine, const std::vector<Request>& requests) {
    std::map<int64_t, size_t> at;
    std::vector<Answer> answers(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) at[engine.submit(requests[i])] = i;
    std::vector<TokenEvent> events;
    for (int steps = 0; !engine.idle(); ++steps) {
      if (steps > 20000) throw std::runtime_error("the engine makes no progress");
      engine.step(events);
      for (const TokenEvent& e : events) {
        Answer& a = answers[at.at(e.request)];
        EXPECT_EQ(a.finish, FinishReason::kNone);
        EXPECT_EQ(e.error, "");
        if (e.token.id >= 0) {
          a.ids.push_back(e.token.id);
          a.logprobs.push_back(e.token.logprob);
          a.reads.push_back(e.token.reads.top);
        }
        a.finish = e.finish;
        a.cached = e.cached_tokens;
      }
    }
    return answers;
  }
  std::vector<Answer> plain(const std::vector<Request>& requests) {
    Engine engine(*model_, context_, options_);
    return run(engine, requests);
  }

  // Guesses that come true until one does not, at a random place of each row: `truth` has the
  // answers of the requests, in the order of their numbers.
  static auto partly_right(const std::vector<Request>& requests, const std::vector<Answer>& truth,
                           int64_t vocab) {
    const auto rng = std::make_shared<std::mt19937>(3);
    return [&requests, &truth, rng, vocab](int64_t number, const std::vector<int32_t>& tokens,
                                           std::vector<int32_t>& drafts) {
      const auto i = static_cast<size_t>(number) % requests.size();
      const size_t done = tokens.size() - requests[i].prompt.size();
      const size_t wrong = (*rng)() % (drafts.size() + 2);
      for (size_t k = 0; k < drafts.size(); ++k) {
        const size_t next = done + k;
        if (next < truth[i].ids.size()) drafts[k] = truth[i].ids[next];
        if (k == wrong) drafts[k] = static_cast<int32_t>((drafts[k] + 1) % vocab);
      }
    };
  }

  KernelContext context_;
  std::unique_ptr<LoadedModel> model_;
  EngineOptions options_;
};

TEST_P(Speculation, OwnGuessesChangeNothing) {
  const auto all = requests(fewer(12, 8));
  const auto want = plain(all);
  for (const int64_t tokens : {1, 5}) {
    EngineOptions o = options_;
    o.speculative_tokens = tokens;
    Engine engine(*model_, context_, o);
    const auto together = run(engine, all);
    for (size_t i = 0; i < all.size(); ++i) expect_same(together[i], want[i], i);
    for (const size_t i : {3U, 7U}) {
      Engine alone(*model_, context_, o);
      expect_same(run(alone, {all[i]})[0], want[i], i);
    }
    const SpeculationStats s = engine.stats().speculation;
    EXPECT_GT(s.drafts, 0);
    EXPECT_GT(s.tokens, s.drafts * tokens / 2);
    EXPECT_LE(s.accepted, s.tokens);
  }
}

// Nor where nobody asks for log-probabilities, and a device draws the tokens.
TEST_P(Speculation, DrawnTokensNeedNoLogits) {
  auto all = requests(fewer(12, 8));
  const auto want = plain(all);
  for (Request& r : all) r.sampling.logprob = false;
  EngineOptions o = options_;
  o.speculative_tokens = 3;
  Engine engine(*model_, context_, o);
  const auto got = run(engine, all);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(got[i].ids, want[i].ids) << i;
}

TEST_P(Speculation, RightAndWrongGuessesChangeNothing) {
  auto all = requests(fewer(16, 7));
  for (size_t i = 0; i < all.size(); i += 3) all[i].top_reads = 4;
  const auto want = plain(all);
  for (const int64_t tokens : {1, 4, 8}) {
    EngineOptions o = options_;
    o.speculative_tokens = tokens;
    o.change_drafts = partly_right(all, want, model_->config().vocab_size);
    Engine engine(*model_, context_, o);
    const auto got = run(engine, all);
    int64_t generated = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      expect_same(got[i], want[i], i);
      generated += static_cast<int64_t>(got[i].ids.size());
      ASSERT_EQ(got[i].reads.size(), want[i].reads.size());
      for (size_t t = 0; t < want[i].reads.size(); ++t) {
        ASSERT_EQ(got[i].reads[t].size(), want[i].reads[t].size()) << i << ' ' << t;
        for (size_t r = 0; r < want[i].reads[t].size(); ++r) {
          EXPECT_EQ(got[i].reads[t][r].position, want[i].reads[t][r].position);
          EXPECT_EQ(got[i].reads[t][r].share, want[i].reads[t][r].share);
        }
      }
    }
    const EngineStats s = engine.stats();
    EXPECT_EQ(s.generated_tokens, generated);
    EXPECT_GT(s.speculation.accepted, s.speculation.tokens / 4);
    EXPECT_LT(s.speculation.accepted, s.speculation.tokens);
    int64_t by_place = 0;
    for (size_t k = 0; k < s.speculation.at.size(); ++k) {
      by_place += s.speculation.at[k];
      if (k > 0) {
        EXPECT_LE(s.speculation.at[k], s.speculation.at[k - 1]);
      }
    }
    EXPECT_EQ(by_place, s.speculation.accepted);
    EXPECT_EQ(s.pages_used, 0);
  }
}

TEST_P(Speculation, AfterPreemptionsAndCacheHits) {
  auto all = requests(fewer(14, 8));
  for (Request& r : all) r.max_tokens += fewer(60, 30);
  const auto want = plain(all);
  EngineOptions o = options_;
  o.speculative_tokens = 3;
  o.cache.pages = fewer(12, 6);
  o.max_context = 300;
  o.change_drafts = partly_right(all, want, model_->config().vocab_size);
  Engine engine(*model_, context_, o);
  auto got = run(engine, all);
  for (size_t i = 0; i < all.size(); ++i) expect_same(got[i], want[i], i);
  EXPECT_GT(engine.stats().preemptions, 2);
  EXPECT_GT(engine.stats().speculation.accepted, 0);
  // The same once more, from what the first left behind; page by page the guesses hold as well.
  o.cache.pages = 256;
  Engine roomy(*model_, context_, o);
  run(roomy, all);
  const int64_t first = roomy.stats().speculation.accepted;
  got = run(roomy, all);
  int64_t cached = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    expect_same(got[i], want[i], i);
    cached += got[i].cached;
  }
  EXPECT_GT(cached, 500);
  EXPECT_GT(roomy.stats().speculation.accepted, first);
}

// What the layer guesses after chunks, wrong guesses and right ones is what it computes from the
// whole text at once: its entries are where the main layers' are.
TEST_P(Speculation, TheLayerFollowsTheText) {
  if (GetParam() != Precision::kExact) return;  // prompts and answers differ in form there
  const ModelConfig& c = model_->config();
  Request r = requests(8)[4];
  r.prompt = random_ids(150, c.vocab_size, 17);
  r.max_tokens = 60;
  const auto want = plain({r})[0];
  std::map<size_t, int32_t> guesses;  // by the length of the text
  EngineOptions o = options_;
  o.speculative_tokens = 4;
  const std::vector<Request> one{r};
  const std::vector<Answer> truth{want};
  const auto mix = partly_right(one, truth, c.vocab_size);
  o.change_drafts = [&](int64_t n, const std::vector<int32_t>& tokens,
                        std::vector<int32_t>& drafts) {
    if (!drafts.empty()) guesses[tokens.size()] = drafts[0];
    mix(n, tokens, drafts);
  };
  Engine engine(*model_, context_, o);
  run(engine, one);
  std::vector<int32_t> text = r.prompt;
  text.insert(text.end(), want.ids.begin(), want.ids.end());
  // At once: main layers, then the drafting one, on a cache of its own.
  PagedCache cache(c, {8, KvFormat::kF32, KvFormat::kF32, true}, context_.device());
  CachedSequence s;
  const auto n = static_cast<int64_t>(text.size()) - 1;
  ASSERT_TRUE(cache.reserve(s, n));
  const KvSequence table{s.pages.data()};
  std::vector<int32_t> sequence(text.size()), position(text.size()), failed(1);
  std::iota(position.begin(), position.end(), 0);
  std::vector<float> hidden(static_cast<size_t>(n * c.hidden_size));
  std::vector<float> logits(static_cast<size_t>(n * c.vocab_size));
  const BatchSequence slice{0, n, false};
  Batch b;
  b.tokens = {n, sequence.data(), position.data(), &table};
  b.ids = text.data();
  b.sequences = {&slice, 1};
  b.kv = cache.view();
  b.logits = logits.data();
  b.hidden = hidden.data();
  b.failed_layer = failed.data();
  Activations act;
  const auto selector = make_selector(options_.policy);
  model_->model().forward(context_, b, *selector, act);
  const std::vector<float> states = hidden;
  b.ids = text.data() + 1;
  b.logit_rows = {position.data(), static_cast<size_t>(n)};
  model_->model().forward_mtp(context_, b, 0, states.data(), *selector, act);
  ASSERT_GT(guesses.size(), 15U);
  for (const auto& [length, guess] : guesses) {
    // A text of that length: the last row that knows its next token.
    const float* row = logits.data() + static_cast<int64_t>(length - 2) * c.vocab_size;
    EXPECT_EQ(guess, std::max_element(row, row + c.vocab_size) - row) << length;
  }
}

TEST_P(Speculation, RandomLifeLeavesNoPageBehind) {
  EngineOptions o = options_;
  o.cache.pages = 10;
  o.max_context = 300;
  o.chunk = 48;
  o.speculative_tokens = 5;
  const auto rng = std::make_shared<std::mt19937>(5);
  o.change_drafts = [rng](int64_t, const std::vector<int32_t>&, std::vector<int32_t>& drafts) {
    if ((*rng)() % 3 == 0) drafts.clear();
  };
  Engine engine(*model_, context_, o);
  std::vector<TokenEvent> events;
  std::map<int64_t, int> ended;
  int64_t submitted = 0;
  const int steps = fewer(300, 100);
  for (int i = 0; i < steps || !engine.idle(); ++i) {
    ASSERT_LT(i, 20000);
    if (i < steps && (*rng)() % 3 == 0) {
      Request r = requests(9)[(*rng)() % 9];
      r.priority = static_cast<int64_t>((*rng)() % 3);
      if ((*rng)() % 4 == 0) r.attention = SelectionPolicy{AttentionKind::kDense, 0, 0};
      engine.submit(r);
      ++submitted;
    } else if ((*rng)() % 8 == 0 && submitted > 0) {
      engine.cancel(static_cast<int64_t>((*rng)() % static_cast<uint64_t>(submitted)));
    }
    engine.step(events);
    for (const TokenEvent& e : events) ended[e.request] += e.finish != FinishReason::kNone ? 1 : 0;
  }
  for (int64_t i = 0; i < submitted; ++i) EXPECT_EQ(ended[i], 1) << i;
  EXPECT_EQ(engine.cache().used_pages(), 0);
  EXPECT_GT(engine.stats().preemptions, 0);
  EXPECT_GT(engine.stats().speculation.drafts, 0);
}

// Guesses are masked, and the constraint does not move with those that fail.
TEST_P(Speculation, UnderAConstraint) {
  const Tokenizer tokenizer =
      Tokenizer::load(std::string(TAMIS_SOURCE_DIR) + "/models/tamis-mini/tokenizer.json");
  ConstraintSpec spec;
  spec.answer = ConstraintSpec::Answer::kRegex;
  spec.text = "[ab]{12}(xy|z){3,9}";
  auto all = requests(fewer(8, 4));
  const auto trie = std::make_shared<TokenTrie>(tokenizer, model_->config().vocab_size);
  for (Request& r : all) {
    r.constraint = compile_constraint(spec, trie);
    r.max_tokens = 40;
    r.stop_ids = {1};
  }
  const auto want = plain(all);
  for (const bool help : {false, true}) {
    EngineOptions o = options_;
    o.speculative_tokens = 6;
    if (help) o.change_drafts = partly_right(all, want, model_->config().vocab_size);
    Engine engine(*model_, context_, o);
    const auto got = run(engine, all);
    for (size_t i = 0; i < all.size(); ++i) {
      expect_same(got[i], want[i], i);
      EXPECT_EQ(got[i].finish, FinishReason::kStop);
      EXPECT_GE(got[i].ids.size(), 15U);
    }
    // A masked guess has two tokens to choose from.
    EXPECT_GT(engine.stats().speculation.accepted, engine.stats().speculation.tokens / 10);
  }
}

TEST_P(Speculation, NeedsTheLayer) {
  EngineOptions o = options_;
  o.speculative_tokens = 1;
  o.cache.with_mtp = false;
  EXPECT_THROW(Engine(*model_, context_, o), UsageError);
  o.cache.with_mtp = true;
  o.speculative_tokens = kMaxSpeculation + 1;
  EXPECT_THROW(Engine(*model_, context_, o), UsageError);
  const LoadedModel without(model_->checkpoint().folder(), {}, single_group());
  o.speculative_tokens = 1;
  EXPECT_THROW(Engine(without, context_, o), UsageError);
}

INSTANTIATE_TEST_SUITE_P(Paths, Speculation,
                         ::testing::Values(Precision::kExact, Precision::kNative),
                         [](const auto& p) {
                           return p.param == Precision::kExact ? "Exact" : "Native";
                         });

}  // namespace
}  // namespace tamis
