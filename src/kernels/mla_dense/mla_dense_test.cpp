#include "kernels/mla_dense/mla_dense.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/mla_dense/test_problem.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using mla_dense_test::Problem;
using mla_dense_test::Shape;

bool same_bits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}

constexpr Shape kShapes[] = {{1, 128, 64, 128}, {3, 16, 8, 16}, {2, 20, 6, 21}, {4, 192, 64, 256}};

TEST(MlaDense, AgreesWithTheReference) {
  for (const Shape& shape : kShapes) {
    for (const auto& [tokens, positions] : {std::pair<int64_t, int64_t>{1, 1},
                                            {1, 300},
                                            {3, 64},
                                            {59, 65},
                                            {60, 60},
                                            {61, 129},
                                            {130, 130}}) {
      const Problem problem(shape, tokens, positions);
      const auto want = problem.all("reference"), got = problem.all("simd");
      const double tolerance = problem.tolerance();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], tolerance) << "nope " << shape.nope << " tokens " << tokens;
      }
    }
  }
}

TEST(MlaDense, AttendsToTheSelectionAlone) {
  for (const Shape& shape : kShapes) {
    for (const int64_t k : {1, 3, 64, 100}) {
      Problem problem(shape, 70, 300);
      const auto dense = problem.all("simd");
      const double tolerance = problem.tolerance();
      problem.select(k);
      const auto want = problem.all("reference"), got = problem.all("simd");
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], tolerance) << "nope " << shape.nope << " k " << k;
      }
      EXPECT_FALSE(same_bits(got.data(), dense.data(), static_cast<int64_t>(got.size())));
      problem.select(300);
      const auto all = problem.all("simd");
      EXPECT_TRUE(same_bits(all.data(), dense.data(), static_cast<int64_t>(all.size())));
    }
  }
}

TEST(MlaDense, BitsDependOnTheTokenAlone) {
  for (const Shape& shape : kShapes) {
    const Problem problem(shape, 67, 140);
    const auto whole = problem.all("simd");
    for (const int threads : {1, 3}) {
      for (const int64_t chunk : {1, 7, 64}) {
        for (int64_t begin = 0; begin < problem.tokens(); begin += chunk) {
          const int64_t end = std::min(begin + chunk, problem.tokens());
          const auto part = problem.run("simd", begin, end, threads);
          ASSERT_TRUE(same_bits(whole.data() + begin * problem.row(), part.data(),
                                (end - begin) * problem.row()));
        }
      }
    }
  }
}

// As for mla_sparse: rounding moves a weight by two units at most where the reference rounds the
// other way, and that is rare.
TEST(MlaDense, RoundedWeightsAgreeWithTheReference) {
  for (const Shape& shape : kShapes) {
    for (const int64_t k : {0, 1, 100}) {
      Problem problem(shape, 130, 200);
      if (k > 0) problem.select(k);
      const auto exact = problem.all("reference");
      problem.round_bf16 = true;
      const auto want = problem.all("reference"), got = problem.all("simd");
      const double tolerance = problem.tolerance() + 2 * kUnitBf16 * problem.largest_value();
      double error = 0, effect = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], tolerance) << "nope " << shape.nope << " k " << k;
        error += std::pow(static_cast<double>(got[i]) - want[i], 2);
        effect += std::pow(static_cast<double>(exact[i]) - want[i], 2);
      }
      EXPECT_LE(std::sqrt(error), std::sqrt(effect) / 8) << "the weights are not rounded";
    }
  }
}

TEST(MlaDense, BitsOfRoundedWeightsDependOnTheTokenAlone) {
  for (const Shape& shape : kShapes) {
    Problem problem(shape, 67, 140);
    problem.round_bf16 = true;
    const auto whole = problem.all("simd");
    problem.select(140);
    for (const int64_t chunk : {1, 7, 64}) {
      for (int64_t begin = 0; begin < problem.tokens(); begin += chunk) {
        const int64_t end = std::min(begin + chunk, problem.tokens());
        const auto part = problem.run("simd", begin, end, 3);
        ASSERT_TRUE(same_bits(whole.data() + begin * problem.row(), part.data(),
                              (end - begin) * problem.row()));
      }
    }
  }
}

TEST(MlaDense, NanStaysWithTheQueriesThatSeeIt) {
  Problem problem({2, 16, 8, 16}, 60, 60);
  problem.round_bf16 = true;
  const auto clean = problem.all("simd");
  problem.poison_position(31);
  const auto got = problem.all("simd");
  EXPECT_TRUE(same_bits(clean.data(), got.data(), 31 * problem.row()));
  for (size_t i = static_cast<size_t>(31 * problem.row()); i < got.size(); ++i) {
    EXPECT_TRUE(std::isnan(got[i])) << i;
  }
}

TEST(MlaDense, APositionThatAQueryDoesNotSeeCannotReachIt) {
  Problem problem({2, 16, 8, 16}, 60, 60);
  const auto clean = problem.all("simd");
  problem.poison_position(31);
  const auto got = problem.all("simd");
  EXPECT_TRUE(same_bits(clean.data(), got.data(), 31 * problem.row()));
  for (size_t i = static_cast<size_t>(31 * problem.row()); i < got.size(); ++i) {
    EXPECT_TRUE(std::isnan(got[i])) << i;
  }
}

}  // namespace
}  // namespace tamis
