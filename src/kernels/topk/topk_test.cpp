#include "kernels/topk/topk.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/topk/test_rows.h"
#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Selection {
  std::vector<int32_t> indices;
  bool clean;
  bool operator==(const Selection&) const = default;
};

// Guards around the buffers show a write outside.
Selection fast(const std::vector<float>& scores, int64_t k) {
  std::vector<float> work(scores.size() + 1, 1234.0f);
  std::vector<int32_t> indices(static_cast<size_t>(k) + 1, 4321);
  const bool clean =
      topk_row(scores.data(), static_cast<int64_t>(scores.size()), k, work.data(), indices.data());
  EXPECT_EQ(work.back(), 1234.0f);
  EXPECT_EQ(indices.back(), 4321);
  indices.pop_back();
  return {indices, clean};
}

Selection slow(const std::vector<float>& scores, int64_t k) {
  std::vector<int32_t> indices(static_cast<size_t>(k));
  const bool clean =
      topk_row_reference(scores.data(), static_cast<int64_t>(scores.size()), k, indices.data());
  return {indices, clean};
}

TEST(Topk, AgreesWithTheReferenceOnEveryDistributionAndEdge) {
  for (int kind = 0; kind < kScoreKinds; ++kind) {
    for (const int64_t k : {1, 7, 8, 64, 300}) {
      for (const int64_t n :
           {int64_t{0}, int64_t{1}, k - 1, k, k + 1, 2 * k + 3, int64_t{1024}, int64_t{2500}}) {
        const auto x = scores_of(kind, n, static_cast<uint32_t>(n + k));
        ASSERT_EQ(fast(x, k).indices, slow(x, k).indices)
            << "kind " << kind << " n " << n << " k " << k;
        ASSERT_EQ(fast(x, k).clean, slow(x, k).clean);
      }
    }
  }
}

TEST(Topk, LengthsAroundTwoThousandAndTheLongest) {
  for (const int kind : {0, 1, 2, 3, 8, 11}) {
    for (const int64_t n : {2047, 2048, 2049, 32768, 163840}) {
      const auto x = scores_of(kind, n, 3);
      ASSERT_EQ(fast(x, 2048), slow(x, 2048)) << "kind " << kind << " n " << n;
    }
  }
}

TEST(Topk, RandomRows) {
  const bool held = rc::check("equal to the reference", [](const std::vector<float>& base) {
    // A few values, repeated: ties everywhere.
    std::vector<float> x;
    for (int i = 0; i < 20; ++i) x.insert(x.end(), base.begin(), base.end());
    const int64_t k = *rc::gen::inRange<int64_t>(0, 200);
    RC_ASSERT(fast(x, k) == slow(x, k));
  });
  EXPECT_TRUE(held);
}

TEST(Topk, TiesGoToTheEarliestAndNanIsChosenLast) {
  const std::vector<float> x = {NAN, 1, 2, 1, 2, 1, NAN, -kInf};
  EXPECT_EQ(fast(x, 3), (Selection{{1, 2, 4}, false}));
  EXPECT_EQ(fast(x, 6), (Selection{{1, 2, 3, 4, 5, 7}, false}));
  EXPECT_EQ(fast(x, 7), (Selection{{0, 1, 2, 3, 4, 5, 7}, false}));
  EXPECT_EQ(fast({0.0f, -0.0f, 0.0f}, 2), (Selection{{0, 1}, true}));
  EXPECT_EQ(fast({5.0f}, 3), (Selection{{0, -1, -1}, true}));
}

TEST(Topk, RowsOfDifferentLengthsOnAnyNumberOfThreads) {
  const int64_t stride = 500, k = 64;
  const std::vector<int32_t> lengths = {0, 1, 63, 64, 65, 500, 499};
  const auto rows = static_cast<int64_t>(lengths.size());
  auto x = scores_of(0, rows * stride, 1);
  x[3 * 500 + 64] = NAN;  // past the end of its row: no candidate
  x[4 * 500 + 64] = NAN;
  for (const std::string name : {"simd", "reference"}) {
    for (const int threads : {1, 2, 3}) {
      KernelContext context(threads);
      context.force("topk", name);
      std::vector<int32_t> indices(static_cast<size_t>(rows * k));
      std::vector<uint8_t> nan(lengths.size(), 7);
      topk(context, {x.data(), stride, rows, lengths.data(), k, indices.data(), nan.data()});
      for (int64_t r = 0; r < rows; ++r) {
        const std::vector<float> one(x.begin() + r * stride,
                                     x.begin() + r * stride + lengths[static_cast<size_t>(r)]);
        const std::vector<int32_t> got(indices.begin() + r * k, indices.begin() + (r + 1) * k);
        EXPECT_EQ(got, slow(one, k).indices) << name << " row " << r;
      }
      EXPECT_EQ(nan, (std::vector<uint8_t>{0, 0, 0, 0, 1, 0, 0}));
    }
  }
}

}  // namespace
}  // namespace tamis
