#include "kernels/topk/test_rows.h"
#include "kernels/topk/topk_impl.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

class TopkCuda : public CudaTest {
 protected:
  // Rows of their own lengths, one after the other `stride` apart; compared with the reference.
  void expect_reference(const Floats& scores, int64_t stride, const std::vector<int32_t>& lengths,
                        int64_t k) {
    if (skip_case()) return;
    const auto rows = static_cast<int64_t>(lengths.size());
    Device<float> s(context(), scores);
    Device<int32_t> n(context(), lengths), got(context(), rows * k + 1);
    Device<uint8_t> nan(context(), rows);
    topk(context(), {s.data(), stride, rows, n.data(), k, got.data(), nan.data()});
    const std::vector<int32_t> indices = got.read();
    const std::vector<uint8_t> flags = nan.read();
    EXPECT_EQ(indices.back(), -1) << "wrote past the end";
    std::vector<int32_t> want(static_cast<size_t>(k));
    for (int64_t r = 0; r < rows; ++r) {
      const auto at = static_cast<size_t>(r);
      const bool clean =
          topk_row_reference(scores.data() + r * stride, lengths[at], k, want.data());
      ASSERT_EQ(std::vector<int32_t>(indices.begin() + r * k, indices.begin() + (r + 1) * k), want)
          << "row " << r << " of length " << lengths[at] << ", k " << k;
      ASSERT_EQ(flags[at], clean ? 0 : 1) << "row " << r;
    }
  }

  // One row of each distribution, all `n` long.
  void expect_kinds(int64_t n, int64_t k, const std::vector<int>& kinds, int64_t gap = 0) {
    const int64_t stride = n + gap;
    Floats scores;
    for (const int kind : kinds) {
      const Floats row = scores_of(kind, n, static_cast<uint32_t>(n + k));
      scores.insert(scores.end(), row.begin(), row.end());
      scores.resize(scores.size() + static_cast<size_t>(gap), NAN);  // no candidates
    }
    expect_reference(scores, stride, std::vector<int32_t>(kinds.size(), static_cast<int32_t>(n)),
                     k);
  }
};

std::vector<int> all_kinds() {
  std::vector<int> kinds;
  for (int i = 0; i < kScoreKinds; ++i) kinds.push_back(i);
  return kinds;
}

TEST_F(TopkCuda, IsTheTotalOrderOnEveryDistributionAndEdge) {
  for (const int64_t k : {1, 7, 8, 64, 300}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, k - 1, k, k + 1, 2 * k + 3, int64_t{2500}}) {
      expect_kinds(n, k, all_kinds(), 3);
    }
  }
}

TEST_F(TopkCuda, LengthsAroundTwoThousandAPieceAndTheLongest) {
  for (const int64_t n : {0, 1, 2047, 2048, 2049, 8191, 8192, 8193, 10240, 16385}) {
    expect_kinds(n, 2048, all_kinds(), n % 2);
  }
  expect_kinds(163840, 2048, {0, 1, 2, 3, 5, 6, 8, 11});
}

// Beyond one map of bits, and past the k of the streaming kernel.
TEST_F(TopkCuda, LongerRowsAndLargerK) {
  expect_kinds(700001, 2048, {0, 1});
  expect_kinds(9000, 2049, all_kinds());
  expect_kinds(5000, 4999, {0, 1, 4, 9});
}

TEST_F(TopkCuda, RowsOfDifferentLengths) {
  std::vector<int32_t> lengths = {0, 1, 63, 64, 65, 500, 499, 3};
  Floats scores = scores_of(0, 8 * 500, 1);
  scores[3 * 500 + 64] = NAN;  // past the end of its row: no candidate
  scores[4 * 500 + 64] = NAN;
  expect_reference(scores, 500, lengths, 64);
}

// More rows than multiprocessors, with fewer threads for each; and a few long rows of all kinds,
// which several blocks share.
TEST_F(TopkCuda, ManyRowsAndFewLongOnes) {
  std::vector<int32_t> lengths;
  Floats scores;
  for (int row = 0; row < 300; ++row) {
    const Floats kind = scores_of(row % kScoreKinds, 9000, static_cast<uint32_t>(row));
    scores.insert(scores.end(), kind.begin(), kind.end());
    lengths.push_back(row < 20 ? 2040 + row : 9000 - 29 * row);
  }
  expect_reference(scores, 9000, lengths, 2048);
  expect_reference(scores, 9000, lengths, 37);
  for (const int64_t k : {1, 100, 2048}) {
    expect_kinds(20001, k, all_kinds());
    expect_kinds(66000, k, {0, 3, 7}, 1);
  }
}

// Rows that fit into a block's shared memory, fewer and more than multiprocessors.
TEST_F(TopkCuda, ManyShortRows) {
  for (const int64_t stride : {8192, 8191, 1001, 96}) {
    std::vector<int32_t> lengths;
    Floats scores;
    for (int row = 0; row < 300; ++row) {
      const Floats kind = scores_of(row % kScoreKinds, stride, static_cast<uint32_t>(row));
      scores.insert(scores.end(), kind.begin(), kind.end());
      lengths.push_back(static_cast<int32_t>(row % 4 == 0 ? stride : stride - row * stride / 300));
    }
    for (const int64_t k : {1, 37, 2048, 3000}) expect_reference(scores, stride, lengths, k);
  }
}

TEST_F(TopkCuda, TwentyRunsGiveTheSame) {
  const int64_t n = 40000, k = 2048;
  Device<float> s(context(), scores_of(3, n, 1));
  Device<int32_t> length(context(), {static_cast<int32_t>(n)}), got(context(), k);
  topk(context(), {s.data(), n, 1, length.data(), k, got.data(), nullptr});
  const std::vector<int32_t> first = got.read();
  for (int i = 0; i < repeats(20); ++i) {
    topk(context(), {s.data(), n, 1, length.data(), k, got.data(), nullptr});
    ASSERT_EQ(got.read(), first);
  }
}

}  // namespace
}  // namespace tamis
