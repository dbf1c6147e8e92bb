#include "kernels/mla_sparse/mla_sparse.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <string>

#include "kernels/mla_sparse/test_problem.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using mla_sparse_test::Problem;
using mla_sparse_test::Shape;

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8};

TEST(MlaSparse, AgreesWithTheReferenceAndReadsSelectedRowsAlone) {
  const Shape shapes[] = {{1, 512, 64, 3},    {2, 512, 64, 64}, {3, 32, 8, 65},
                          {4, 32, 8, 1},      {5, 40, 4, 63},   {10, 48, 6, 257},
                          {16, 512, 64, 300}, {33, 128, 16, 4}, {7, 136, 16, 800}};
  for (const Shape& shape : shapes) {
    for (const KvFormat format : kFormats) {
      Problem problem(shape, format);
      problem.poison_unselected();
      const auto want = problem.all("reference"), got = problem.all("simd");
      const double tolerance = problem.tolerance();
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
        ASSERT_LE(error, tolerance)
            << "heads " << shape.heads << " kv_lora " << shape.kv_lora << " k " << shape.k
            << " format " << static_cast<int>(format) << " element " << i;
        worst = std::max(worst, error);
      }
      if (shape.k > 1) {
        EXPECT_GT(worst, tolerance / 1e5) << "the bound says nothing";
      } else {
        EXPECT_EQ(worst, 0) << "one position alone gives its latent, bit for bit";
      }
    }
  }
}

std::vector<float> part(const std::vector<float>& x, int64_t begin, int64_t end) {
  return {x.begin() + begin, x.begin() + end};
}

// Comparing floats with == would let -0 pass for 0.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(MlaSparse, BitsDependOnTheTokenAlone) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape : {Shape{16, 512, 64, 600}, Shape{5, 40, 4, 300}, Shape{1, 32, 8, 64},
                               Shape{40, 128, 16, 130}}) {
      const Problem problem(shape, format), moved(shape, format, 99);
      const auto whole = problem.all("simd");
      const int64_t n = problem.tokens(), row = problem.row();
      for (const int threads : {1, 2, 3}) {
        EXPECT_TRUE(same_bits(whole, problem.all("simd", threads)));
        EXPECT_TRUE(same_bits(whole, moved.all("simd", threads)));
        for (int64_t t = 0; t < n; ++t) {
          EXPECT_TRUE(same_bits(part(whole, t * row, (t + 1) * row),
                                problem.run("simd", t, t + 1, threads)));
        }
        const auto tail = problem.run("simd", 7, n, threads);
        EXPECT_TRUE(same_bits(part(whole, 7 * row, n * row), tail));
      }
    }
  }
}

// Where an error of float moves a weight across a rounding boundary, it moves by a unit of bf16;
// all together that is v_max * 2 u at most. Few weights lie so near a boundary: on the whole the
// result is far nearer to the rounded reference than rounding moves it.
TEST(MlaSparse, RoundedWeightsAgreeWithTheReference) {
  for (const Shape& shape : {Shape{1, 512, 64, 3}, Shape{3, 32, 8, 65}, Shape{5, 40, 4, 63},
                             Shape{16, 512, 64, 300}, Shape{33, 128, 16, 700}}) {
    for (const KvFormat format : kFormats) {
      Problem problem(shape, format);
      const auto exact = problem.all("reference");
      problem.round_bf16 = true;
      problem.poison_unselected();
      const auto want = problem.all("reference"), got = problem.all("simd");
      double error = 0, effect = 0;
      const double tolerance = problem.tolerance() + 2 * kUnitBf16 * problem.largest_value();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], tolerance) << "heads " << shape.heads << " element " << i;
        error += std::pow(static_cast<double>(got[i]) - want[i], 2);
        effect += std::pow(static_cast<double>(exact[i]) - want[i], 2);
      }
      EXPECT_LE(std::sqrt(error), std::sqrt(effect) / 8) << "the weights are not rounded";
    }
  }
}

TEST(MlaSparse, BitsOfRoundedWeightsDependOnTheTokenAlone) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape :
         {Shape{16, 512, 64, 600}, Shape{5, 40, 4, 700}, Shape{40, 128, 16, 64}}) {
      Problem problem(shape, format), moved(shape, format, 99);
      problem.round_bf16 = moved.round_bf16 = true;
      const auto whole = problem.all("simd");
      for (const int threads : {1, 2, 3}) {
        EXPECT_TRUE(same_bits(whole, moved.all("simd", threads)));
        for (const int64_t t : {int64_t{0}, int64_t{7}, problem.tokens() - 1}) {
          EXPECT_TRUE(same_bits(part(whole, t * problem.row(), (t + 1) * problem.row()),
                                problem.run("simd", t, t + 1, threads)));
        }
        if (shape.k == 700) {
          EXPECT_TRUE(same_bits(whole, problem.run("simd", 0, problem.tokens(), threads, true)));
        }
      }
    }
  }
}

TEST(MlaSparse, AllVisibleAsIndicesOrNotGivesTheSameBits) {
  for (const KvFormat format : kFormats) {
    for (const int64_t heads : {1, 4, 16, 40}) {
      const Problem problem({heads, 128, 16, 700}, format);
      const auto whole = problem.all("simd");
      for (const int threads : {1, 2, 3}) {
        EXPECT_TRUE(same_bits(whole, problem.run("simd", 0, problem.tokens(), threads, true)));
        const auto last = problem.run("simd", 10, 11, threads, true);
        EXPECT_TRUE(same_bits(part(whole, 10 * problem.row(), 11 * problem.row()), last));
      }
    }
  }
}

// Prompts: neighbours share tiles, in runs of lengths that depend on heads and threads, as far as
// each of them sees; alone a token has too few rows for panels or not, by its heads.
TEST(MlaSparse, PromptsSharingTilesHaveTheBitsOfTheirTokensAlone) {
  for (const int64_t heads : {1, 3, 5, 7, 16}) {
    for (const int64_t k : {400, 130}) {  // every row whole; rows from position 130 on selected
      Problem problem({heads, 40, 12, k}, KvFormat::kBF16, 1, 400, 280);
      const auto want = problem.all("reference"), whole = problem.all("simd");
      const double tolerance = problem.tolerance();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(whole[i], want[i], tolerance) << "heads " << heads << " element " << i;
      }
      for (const int threads : {1, 3}) EXPECT_TRUE(same_bits(whole, problem.all("simd", threads)));
      for (int64_t t = 0; t < problem.tokens(); t += 11) {
        EXPECT_TRUE(same_bits(part(whole, t * problem.row(), (t + 1) * problem.row()),
                              problem.run("simd", t, t + 1, 1)))
            << "heads " << heads << " token " << t;
      }
    }
  }
}

TEST(MlaSparse, NanOfALaterPositionStaysOutOfATokenThatSharesItsTile) {
  Problem problem({4, 40, 12, 400}, KvFormat::kF32, 1, 400, 280);
  const auto clean = problem.all("simd", 1);
  constexpr int64_t kBefore = 1 + 70, kFirst = 120, kPoisoned = 300;  // tokens of other sequences
  problem.poison(2, kPoisoned);
  const auto got = problem.all("simd", 1);
  for (int64_t t = 0; t < problem.tokens(); ++t) {
    const int64_t position = kFirst + t - kBefore;
    const bool sees = position >= kPoisoned && t < kBefore + 280;
    for (int64_t i = t * problem.row(); i < (t + 1) * problem.row(); ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(std::isnan(got[at]), sees) << "token " << t;
      if (!sees) {
        ASSERT_EQ(got[at], clean[at]) << "token " << t;
      }
    }
  }
}

// AVX-512 against AVX2; on a machine without AVX-512 there is but one to compare.
TEST(MlaSparse, EveryInstructionSetGivesTheSameBits) {
  const int64_t supported = hwy::SupportedTargets();
  if ((supported & HWY_AVX2) == 0) return;
  const Problem problem({16, 512, 64, 600}, KvFormat::kFP8);
  const auto widest = problem.all("simd");
  hwy::GetChosenTarget().Update(HWY_AVX2);
  const auto narrower = problem.all("simd");
  hwy::GetChosenTarget().Update(supported);
  EXPECT_TRUE(same_bits(widest, narrower));
}

// The comparison above can fail: the same set in another order gives other bits.
TEST(MlaSparse, AnotherOrderGivesOtherBits) {
  Problem problem({4, 128, 16, 300}, KvFormat::kF32);
  const auto before = problem.all("simd");
  problem.swap_first_two_of(10);
  EXPECT_FALSE(same_bits(before, problem.all("simd")));
}

TEST(MlaSparse, NanInAQueryStaysInItsTokenAndIsNotHidden) {
  Problem problem({3, 128, 16, 100}, KvFormat::kF32);
  const auto clean = problem.all("simd");
  problem.q()[4 * problem.row() + 128] = NAN;  // token 4, head 1
  const auto got = problem.all("simd");
  for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) {
    const bool hit = i / 128 == 4 * 3 + 1;
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(std::isnan(got[at]), hit);
    if (!hit) {
      EXPECT_EQ(got[at], clean[at]);
    }
  }
}

}  // namespace
}  // namespace tamis
