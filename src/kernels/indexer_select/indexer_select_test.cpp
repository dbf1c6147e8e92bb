// indexer_logits and indexer_select: one problem, since a score must have the same bits in both.
#include "kernels/indexer_select/indexer_select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/indexer_select/test_problem.h"
#include "kernels/tolerance.h"
#include "kernels/topk/topk_impl.h"

namespace tamis {
using namespace indexer_select_test;

namespace {

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8};
constexpr Shape kShapes[] = {{1, 128}, {8, 128}, {2, 16}, {3, 20}, {4, 64}, {5, 33}, {64, 128}};

template <typename T>
bool same_bits(const T* a, const T* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(T)) == 0;
}

TEST(IndexerLogits, AgreesWithTheReference) {
  for (const Shape& shape : kShapes) {
    for (const KvFormat format : kFormats) {
      Problem problem(shape, format);
      problem.measure_keys();
      const Scores want = problem.logits("reference", 0, problem.tokens());
      const Scores got = problem.logits("simd", 0, problem.tokens());
      for (int64_t t = 0; t < problem.tokens(); ++t) {
        const double tolerance = problem.tolerance(t);
        for (int64_t s = 0; s < got.stride; ++s) {
          if (s >= problem.visible(t)) {
            ASSERT_EQ(got.row(t)[s], -std::numeric_limits<float>::infinity());
          } else {
            ASSERT_NEAR(got.row(t)[s], want.row(t)[s], tolerance)
                << "heads " << shape.heads << " dim " << shape.dim << " token " << t << " at " << s;
          }
        }
      }
    }
  }
}

// A query that picks one dimension shows the key's values as they were decoded, bit for bit.
TEST(IndexerLogits, DecodesKeysAsReadIndexKeyDoes) {
  for (const KvFormat format : kFormats) {
    Problem problem({1, 33}, format);
    const int64_t last = problem.tokens() - 1;
    std::vector<float> key(33);
    for (int64_t d = 0; d < 33; ++d) {
      std::fill_n(problem.q(last), 33, 0.0f);
      problem.q(last)[d] = 1;
      problem.w(last)[0] = 1;
      const Scores got = problem.logits("simd", last, last + 1);
      for (int64_t s = 0; s < problem.visible(last); ++s) {
        read_index_key(problem.cache().layer(), problem.cache().sequences()[4], s, key.data());
        ASSERT_EQ(got.row(0)[s], std::max(0.0f, key[static_cast<size_t>(d)])) << d << " at " << s;
      }
    }
  }
}

TEST(IndexerLogits, BitsDependOnTokenAndPositionAlone) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape : {Shape{8, 128}, Shape{5, 33}, Shape{64, 128}}) {
      const Problem problem(shape, format), moved(shape, format, 99);
      const Scores whole = problem.logits("simd", 0, problem.tokens());
      for (const int threads : {1, 3}) {
        const Scores other = moved.logits("simd", 0, problem.tokens(), threads);
        EXPECT_TRUE(same_bits(whole.row(0), other.row(0), problem.tokens() * whole.stride));
        for (int64_t t = 0; t < problem.tokens(); ++t) {
          const Scores one = problem.logits("simd", t, t + 1, threads);
          EXPECT_TRUE(same_bits(whole.row(t), one.row(0), whole.stride));
        }
      }
    }
  }
}

// The comparison above can fail: heads in another order give other bits.
TEST(IndexerLogits, AnotherOrderOfDimensionsGivesOtherBits) {
  Problem problem({1, 128}, KvFormat::kF32);
  const int64_t last = problem.tokens() - 1;
  const Scores before = problem.logits("simd", last, last + 1);
  std::rotate(problem.q(last), problem.q(last) + 1, problem.q(last) + 128);
  const KvSequence& seq = problem.cache().sequences()[4];
  for (int64_t s = 0; s < problem.visible(last); ++s) {
    std::vector<float> key(128);
    read_index_key(problem.cache().layer(), seq, s, key.data());
    std::rotate(key.begin(), key.begin() + 1, key.end());
    write_index_key(problem.cache().layer(), seq, s, key.data(), false);
  }
  const Scores after = problem.logits("simd", last, last + 1);
  EXPECT_FALSE(same_bits(before.row(0), after.row(0), problem.visible(last)));
}

// The selection is that of the scores of indexer_logits, to the bit.
TEST(IndexerSelect, IsTheTopkOfTheScores) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape : kShapes) {
      const Problem problem(shape, format);
      const Scores scores = problem.logits("simd", 0, problem.tokens());
      for (const int64_t k : {1, 64, 300}) {
        for (const int threads : {1, 3}) {
          const Chosen got = problem.select("simd", k, 0, problem.tokens(), threads);
          for (int64_t t = 0; t < problem.tokens(); ++t) {
            std::vector<int32_t> want(static_cast<size_t>(k));
            topk_row_reference(scores.row(t), problem.visible(t), k, want.data());
            ASSERT_TRUE(same_bits(got.indices.data() + t * k, want.data(), k))
                << "heads " << shape.heads << " k " << k << " token " << t;
            EXPECT_EQ(got.nan[static_cast<size_t>(t)], 0);
            const Chosen one = problem.select("simd", k, t, t + 1, threads);
            ASSERT_TRUE(same_bits(one.indices.data(), want.data(), k)) << "token " << t << " alone";
          }
        }
      }
    }
  }
}

TEST(IndexerSelect, EqualsTheReferenceWhereTheMarginIsAboveTheError) {
  const int64_t k = 64;
  int64_t compared = 0;
  for (const KvFormat format : kFormats) {
    Problem problem({8, 128}, format);
    problem.measure_keys();
    const Scores exact = problem.logits("reference", 0, problem.tokens());
    const Chosen want = problem.select("reference", k, 0, problem.tokens());
    const Chosen got = problem.select("simd", k, 0, problem.tokens());
    for (int64_t t = 0; t < problem.tokens(); ++t) {
      std::vector<float> sorted(exact.row(t), exact.row(t) + problem.visible(t));
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      if (problem.visible(t) > k && sorted[63] - sorted[64] <= 2 * problem.tolerance(t)) continue;
      EXPECT_TRUE(same_bits(got.indices.data() + t * k, want.indices.data() + t * k, k));
      ++compared;
    }
  }
  EXPECT_GT(compared, 40);
}

TEST(IndexerSelect, NanIsReportedForItsTokenAlone) {
  for (const std::string name : {"simd", "reference"}) {
    Problem problem({8, 128}, KvFormat::kF32);
    problem.q(10)[3 * 128] = NAN;
    const Chosen got = problem.select(name, 64, 0, problem.tokens());
    for (int64_t t = 0; t < problem.tokens(); ++t) {
      EXPECT_EQ(got.nan[static_cast<size_t>(t)], t == 10 ? 1 : 0) << name;
    }
  }
}

TEST(IndexerSelect, TiesGoToTheEarliest) {
  Problem problem({4, 64}, KvFormat::kF32);
  const int64_t last = problem.tokens() - 1;
  std::fill_n(problem.q(last), 4 * 64, 0.0f);  // every score is 0
  const Chosen got = problem.select("simd", 64, last, last + 1);
  for (int32_t i = 0; i < 64; ++i) EXPECT_EQ(got.indices[static_cast<size_t>(i)], i);
}

}  // namespace
}  // namespace tamis
