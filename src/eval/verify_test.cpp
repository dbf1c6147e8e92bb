#include "eval/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "support/test_backend.h"

namespace tamis {
namespace {

std::string case_path(const std::string& name) {
  return TAMIS_SOURCE_DIR "/tests/golden/model/" + name;
}

VerifyOptions options_for(const std::string& name) {
  VerifyOptions o;
  o.folder = case_path(name);
  o.ids = random_ids(256, 40, 1);
  o.greedy = 4;
  return o;
}

VerifyReport verify(const VerifyOptions& o) {
  KernelContext reference(1, Backend::kReference), cpu(1, test_backend());
  return verify_backend(reference, cpu, o, [](std::string_view) {});
}

void expect_pass(const VerifyReport& r) {
  for (const std::string& f : r.comparison.failures) ADD_FAILURE() << f;
  for (const VerifyControl& c : r.controls) EXPECT_TRUE(c.pass()) << c.name;
  EXPECT_TRUE(r.pass());
}

TEST(VerifyBackend, CpuHoldsAndEveryFaultIsFound) {
  const VerifyReport r = verify(options_for("b_fp32_sparse_yarn"));
  expect_pass(r);
  ASSERT_EQ(r.controls.size(), 3U);
  for (const VerifyControl& c : r.controls) EXPECT_EQ(c.skipped, "") << c.name;
  // Four layers of scores and selections, not an empty comparison.
  const auto count = [&](const std::string& name) {
    return std::count_if(r.comparison.decisions.begin(), r.comparison.decisions.end(),
                         [&](const DecisionError& d) { return d.name == name; });
  };
  EXPECT_EQ(count("selection"), 4);
  EXPECT_GT(count("experts"), 0);
  EXPECT_EQ(count("greedy tokens"), 1);
}

TEST(VerifyBackend, Fp8KeysInTheCache) {
  VerifyOptions o = options_for("b_fp32_sparse_yarn");
  o.index_format = KvFormat::kFP8;
  expect_pass(verify(o));
}

TEST(VerifyBackend, LayersThatShareASelection) { expect_pass(verify(options_for("f_glm_dsa"))); }

TEST(VerifyBackend, RefusesTooShortAContinuation) {
  VerifyOptions o = options_for("b_fp32_sparse_yarn");
  o.greedy = 1;
  EXPECT_THROW(verify(o), UsageError);
}

TEST(VerifySizes, PromptIsLongerThanTopK) {
  const LoadedModel small(case_path("b_fp32_sparse_yarn"), {}, single_group());
  const VerifySize size = verify_size(small);
  EXPECT_EQ(size.index_topk, 16);
  EXPECT_GT(size.tokens, size.index_topk);
}

TEST(RandomIds, AreAFunctionOfTheSeed) {
  EXPECT_EQ(random_ids(272, 50, 3), random_ids(272, 50, 3));
  EXPECT_NE(random_ids(272, 50, 3), random_ids(272, 50, 4));
  for (const int32_t id : random_ids(7, 100, 1)) {
    EXPECT_GE(id, 0);
    EXPECT_LT(id, 7);
  }
}

// Faults put into a recorded run, one at a time.
class CompareTest : public ::testing::Test {
 protected:
  CompareTest() : model_(case_path("b_fp32_sparse_yarn"), {}, single_group()) {
    KernelContext context(1);
    TraceOptions t;
    t.greedy = 4;
    want_ = record_trace(context, model_, random_ids(272, 40, 1), t);
    got_ = want_;
    for (int64_t l = 0; l < model_.config().num_layers(); ++l) {
      const std::vector<int64_t>& ints = want_.at("topk." + std::to_string(l)).ints;
      chosen_[l].assign(ints.begin(), ints.end());
    }
  }

  VerifyComparison compare() {
    return compare_traces(want_, got_, chosen_, model_.config(), model_.weights(),
                          limits_of(model_.config(), false, false));
  }
  void expect_failure(const std::string& part) {
    const VerifyComparison r = compare();
    ASSERT_FALSE(r.pass());
    EXPECT_NE(r.failures.front().find(part), std::string::npos) << r.failures.front();
  }
  // Puts the position that token 30 of layer 1 left out with the best score in place of the worst
  // that it selected; returns those two.
  std::pair<int32_t, int32_t> swap_at_the_boundary() {
    const int64_t t = 30, k = 16;
    const float* scores = want_.at("index_scores.1").floats.data() + t * 40;
    const auto row = chosen_[1].begin() + t * k;
    const auto worst =
        std::min_element(row, row + k, [&](int32_t a, int32_t b) { return scores[a] < scores[b]; });
    int32_t best = -1;
    for (int32_t s = 0; s <= t; ++s) {
      if (std::find(row, row + k, s) != row + k) continue;
      if (best < 0 || scores[s] > scores[best]) best = s;
    }
    const std::pair<int32_t, int32_t> swapped{*worst, best};
    *worst = best;
    std::sort(row, row + k);
    return swapped;
  }

  LoadedModel model_;
  Trace want_, got_;
  Selections chosen_;
};

TEST_F(CompareTest, TheSameRunPasses) {
  const VerifyComparison r = compare();
  EXPECT_TRUE(r.pass());
  for (const TensorError& e : r.tensors) {
    EXPECT_EQ(e.max_abs, 0) << e.name;
    EXPECT_EQ(e.compared, e.rows) << e.name;
  }
}

TEST_F(CompareTest, RoundingPassesAndMoreDoesNot) {
  std::vector<float>& x = got_.at("attn_out.2").floats;
  for (float& v : x) v *= 1 + 0x1p-23F;
  EXPECT_TRUE(compare().pass());
  for (float& v : x) v *= 1.01F;
  expect_failure("layer 2: attn_out");
}

TEST_F(CompareTest, OneWrongElementIsFound) {
  got_.at("mlp_out.1").floats[700] += 0.01F;
  expect_failure("layer 1: mlp_out");
}

TEST_F(CompareTest, NaNIsFound) {
  got_.at("hidden.3").floats[5] = std::numeric_limits<float>::quiet_NaN();
  expect_failure("layer 3: hidden");
}

TEST_F(CompareTest, AScoreOfALaterPositionIsFound) {
  got_.at("index_scores.0").floats[39] = 0;
  expect_failure("layer 0: index_scores");
}

TEST_F(CompareTest, WrongSelectionIsFound) {
  swap_at_the_boundary();
  expect_failure("layer 1: selection: 1 of 40");
}

TEST_F(CompareTest, SelectionBetweenEqualScoresIsExcused) {
  const auto [out, in] = swap_at_the_boundary();
  std::vector<float>& scores = want_.at("index_scores.1").floats;
  scores[30 * 40 + static_cast<size_t>(in)] = scores[30 * 40 + static_cast<size_t>(out)];
  got_.at("index_scores.1") = want_.at("index_scores.1");
  const VerifyComparison r = compare();
  EXPECT_TRUE(r.pass());
  const auto it = std::find_if(r.decisions.begin(), r.decisions.end(),
                               [](const auto& d) { return d.name == "selection" && d.layer == 1; });
  ASSERT_NE(it, r.decisions.end());
  EXPECT_EQ(it->excused, 1);
  EXPECT_EQ(it->equal, 39);
  EXPECT_LT(it->overlap, 1);
}

TEST_F(CompareTest, PositionsAfterTheTokenAreNeverExcused) {
  chosen_[1][30 * 16 + 15] = 39;
  expect_failure("layer 1: selection");
}

TEST_F(CompareTest, OtherExpertsAreFound) {
  int64_t layer = 0;
  while (want_.count("router." + std::to_string(layer) + ".ids") == 0) ++layer;
  const std::string l = std::to_string(layer);
  std::vector<int64_t>& ids = got_.at("router." + l + ".ids").ints;
  // The expert with the lowest score of all, in place of the last one.
  const std::vector<float>& scores = want_.at("router." + l + ".scores").floats;
  const auto worst = std::min_element(scores.begin(), scores.begin() + 16) - scores.begin();
  ids[3] = worst;
  expect_failure("layer " + l + ": experts");
}

TEST_F(CompareTest, OtherTokensAreFound) {
  std::vector<int64_t>& ids = got_.at("greedy.ids").ints;
  ids[1] = (ids[1] + 1) % 272;
  expect_failure("greedy tokens");
}

TEST_F(CompareTest, OtherShapesAreRefused) {
  got_.at("logits").shape = {39, 272};
  EXPECT_THROW(compare(), UsageError);
}

TEST(VerifyLimit, GrowsWithDepthLengthAndFormat) {
  const LoadedModel model(case_path("b_fp32_sparse_yarn"), {}, single_group());
  const VerifyLimits exact = limits_of(model.config(), false, false);
  const VerifyLimits native = limits_of(model.config(), true, true);
  EXPECT_LT(relative_limit(exact, 1), relative_limit(exact, 8));
  EXPECT_LT(relative_limit(exact, 8), 1e-3);
  EXPECT_GT(relative_limit(native, 1), 10 * relative_limit(exact, 1));
  EXPECT_EQ(exact.score_extra, 0);
  EXPECT_EQ(native.score_extra, 0x1p-4);
}

}  // namespace
}  // namespace tamis
