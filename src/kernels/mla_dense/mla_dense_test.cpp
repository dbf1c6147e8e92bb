#include "kernels/mla_dense/mla_dense.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/tolerance.h"
#include "support/paged_cache.h"

namespace tamis {
namespace {

struct Shape {
  int64_t heads, nope, rope, v_dim;
};

// Queries at the last `tokens` of `positions` positions.
class Problem {
 public:
  Problem(const Shape& shape, int64_t tokens, int64_t positions)
      : shape_(shape), positions_(positions) {
    q_ = random_floats(tokens * shape.heads * (shape.nope + shape.rope), 1);
    kv_ = random_floats(positions * shape.heads * (shape.nope + shape.v_dim), 2);
    k_pe_ = random_floats(positions * shape.rope, 3);
    for (int64_t t = 0; t < tokens; ++t) {
      position_.push_back(static_cast<int32_t>(positions - tokens + t));
    }
  }

  std::vector<float> run(const std::string& name, int64_t begin, int64_t end, int threads) const {
    std::vector<float> out(static_cast<size_t>((end - begin) * row()), NAN);
    KernelContext context(threads);
    context.force("mla_dense", name);
    MlaDenseArgs a;
    a.q = q_.data() + begin * shape_.heads * (shape_.nope + shape_.rope);
    a.tokens = end - begin;
    a.heads = shape_.heads;
    a.nope = shape_.nope;
    a.rope = shape_.rope;
    a.v_dim = shape_.v_dim;
    a.position = position_.data() + begin;
    a.kv = kv_.data();
    a.k_pe = k_pe_.data();
    a.indices = indices_.empty() ? nullptr : indices_.data() + begin * k_;
    a.k = k_;
    a.softmax_scale = scale();
    a.round_bf16 = round_bf16;
    a.out = out.data();
    mla_dense(context, a);
    return out;
  }

  std::vector<float> all(const std::string& name, int threads = 2) const {
    return run(name, 0, tokens(), threads);
  }

  // As in mla_sparse_test.cpp: the error of a score, of exp and of its argument move a weight by
  // that factor, numerator and denominator alike; then a sum over the positions.
  double tolerance() const {
    const int64_t dim = shape_.nope + shape_.rope;
    double q = 0, k = 0, pe = 0;
    const double v = largest_value();
    for (int64_t r = 0; r < tokens() * shape_.heads; ++r) {
      q = std::max(q, norm2(q_.data() + r * dim, dim));
    }
    for (int64_t r = 0; r < positions_ * shape_.heads; ++r) {
      const float* row = kv_.data() + r * (shape_.nope + shape_.v_dim);
      k = std::max(k, norm2(row, shape_.nope));
    }
    for (int64_t s = 0; s < positions_; ++s) {
      pe = std::max(pe, norm2(k_pe_.data() + s * shape_.rope, shape_.rope));
    }
    const double key = std::hypot(k, pe), score = scale() * q * key;
    const double score_error = scale() * dot_tolerance(dim, q, key);
    const double exp_error = (4 + 2 * score) * kUnitF32;
    const auto n = static_cast<double>(positions_);
    return v * (2 * (score_error + exp_error) + (n + n / 16 + 40) * kUnitF32);
  }

  double largest_value() const {
    double v = 0;
    const int64_t width = shape_.nope + shape_.v_dim;
    for (size_t i = 0; i < kv_.size(); ++i) {
      if (static_cast<int64_t>(i) % width >= shape_.nope)
        v = std::max<double>(v, std::fabs(kv_[i]));
    }
    return v;
  }

  bool round_bf16 = false;

  // k random positions that each query sees, or all if it sees fewer.
  void select(int64_t k) {
    std::mt19937 random(5);
    k_ = k;
    indices_.assign(static_cast<size_t>(tokens() * k), -1);
    for (int64_t t = 0; t < tokens(); ++t) {
      std::vector<int32_t> seen(static_cast<size_t>(position_[static_cast<size_t>(t)] + 1));
      std::iota(seen.begin(), seen.end(), 0);
      std::sample(seen.begin(), seen.end(), indices_.begin() + t * k, k, random);
    }
  }

  void poison_position(int64_t s) {
    const int64_t width = shape_.heads * (shape_.nope + shape_.v_dim);
    std::fill_n(kv_.begin() + s * width, width, NAN);
  }

  int64_t tokens() const { return static_cast<int64_t>(position_.size()); }
  int64_t row() const { return shape_.heads * shape_.v_dim; }

 private:
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.nope + shape_.rope)); }

  Shape shape_;
  int64_t positions_;
  std::vector<float> q_, kv_, k_pe_;
  std::vector<int32_t> position_, indices_;
  int64_t k_ = 0;
};

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
