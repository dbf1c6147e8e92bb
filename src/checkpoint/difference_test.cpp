#include "checkpoint/difference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tensor/convert.h"

namespace tamis {
namespace {

struct Packed {
  std::vector<uint8_t> codes;
  uint16_t scale = 0;
  std::vector<float> back;
};

Packed pack(const std::vector<float>& d, int bits) {
  const int64_t n = static_cast<int64_t>(d.size());
  Packed row;
  row.codes.assign(static_cast<size_t>(difference_row_bytes(n, bits)), 0xFF);
  pack_difference_row(d.data(), n, bits, row.codes.data(), &row.scale);
  row.back.resize(d.size());
  unpack_difference_row(row.codes.data(), row.scale, n, bits, row.back.data());
  return row;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return sum;
}

constexpr int64_t kLengths[] = {1, 2, 3, 5, 7, 8, 9, 31, 63, 64, 65, 257};

// Rows that are on the grid come back as they were: codes, order of bits and values. Written
// out of the format's page, not of the code.
TEST(Difference, LayoutOfTwoBits) {
  const Packed row = pack({-3, -1, 1, 3, 3}, 2);
  EXPECT_EQ(row.scale, 0x3F80);  // 1.0
  EXPECT_EQ(row.codes, (std::vector<uint8_t>{0b11100100, 0b00000011}));
  EXPECT_EQ(row.back, (std::vector<float>{-3, -1, 1, 3, 3}));
}

TEST(Difference, LayoutOfThreeBitsCrossesBytes) {
  // Codes 0 1 2 3 4 5 6 7 of 3 bits each, the first in the lowest bits.
  const Packed row = pack({-3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f}, 3);
  EXPECT_EQ(bf16_to_float(row.scale), 0.5f);
  EXPECT_EQ(row.codes, (std::vector<uint8_t>{0b10001000, 0b11000110, 0b11111010}));
}

TEST(Difference, GridRowsComeBackExactly) {
  std::mt19937 random(1);
  for (int bits = 1; bits <= kMaxDifferenceBits; ++bits) {
    const int levels = 1 << bits;
    for (const int64_t n : kLengths) {
      std::vector<float> d(static_cast<size_t>(n));
      for (size_t i = 0; i < d.size(); ++i) {
        // The last code is among them: one start of the search is the scale itself.
        const int code = i == 0 ? levels - 1 : static_cast<int>(random() % levels);
        d[i] = std::ldexp(static_cast<float>(2 * code + 1 - levels), -9);
      }
      EXPECT_EQ(pack(d, bits).back, d) << bits << " bits, n " << n;
    }
  }
}

// The order and the signs of values are kept, and the row is not shrunk: back . d = d . d.
TEST(Difference, OrderSignsAndLengthAreKept) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int bits = 1; bits <= kMaxDifferenceBits; ++bits) {
    for (const int64_t n : kLengths) {
      for (const float size : {1e-15f, 3e-4f, 1.0f, 1e15f}) {
        SCOPED_TRACE(std::to_string(bits) + " bits, n " + std::to_string(n));
        std::vector<float> d(static_cast<size_t>(n));
        for (float& x : d) x = size * normal(random);
        if (n > 4) d[1] = 40 * d[1], d[2] = 0;  // an outlier, and a value between two codes
        const Packed row = pack(d, bits);
        double squares = 0, products = 0;
        for (size_t i = 0; i < d.size(); ++i) {
          ASSERT_GE(static_cast<double>(row.back[i]) * d[i], 0);
          squares += static_cast<double>(d[i]) * d[i];
          products += static_cast<double>(row.back[i]) * d[i];
          for (size_t j = 0; j < i; ++j) {
            ASSERT_TRUE(d[i] <= d[j] ? row.back[i] <= row.back[j] : row.back[i] >= row.back[j]);
          }
        }
        // The scale is rounded once to BF16, half a unit in the last of 8 bits.
        ASSERT_NEAR(products / squares, 1, std::ldexp(1, -8));
        for (int64_t bit = n * bits; bit < 8 * static_cast<int64_t>(row.codes.size()); ++bit) {
          ASSERT_EQ(row.codes[static_cast<size_t>(bit / 8)] >> (bit % 8) & 1, 0) << "spare bits";
        }
      }
    }
  }
}

// On normal rows near the error of the best uniform quantiser (Max 1960), D = 0.3634, 0.1188,
// 0.03744, 0.01154 of the variance, as it is when the shrinking by 1 - D is undone: D / (1 - D).
TEST(Difference, ScaleIsNearTheBest) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr double kBest[] = {0.3634, 0.1188, 0.03744, 0.01154};
  for (int bits = 1; bits <= 4; ++bits) {
    double error = 0, squares = 0;
    for (int row = 0; row < 64; ++row) {
      std::vector<float> d(512);
      for (float& x : d) x = 0.01f * normal(random);
      error += squared_error(pack(d, bits).back, d);
      squares += squared_error(d, std::vector<float>(d.size()));
    }
    // 32768 samples: the mean of the relative error strays by under 2 % (a few times 1/sqrt(N)
    // of a squared error whose standard deviation is about its mean), and BF16 scales cost less.
    const double want = kBest[bits - 1] / (1 - kBest[bits - 1]);
    EXPECT_NEAR(error / squares, want, 0.03 * want) << bits;
  }
}

TEST(Difference, ZeroAndEmptyRows) {
  for (const float zero : {0.0f, -0.0f}) {
    const Packed row = pack(std::vector<float>(9, zero), 2);
    EXPECT_EQ(row.scale, 0);
    EXPECT_EQ(row.codes, std::vector<uint8_t>(3, 0));
    for (const float x : row.back) EXPECT_EQ(x, 0);
  }
  EXPECT_EQ(pack({}, 2).scale, 0);
}

TEST(Difference, RowsOfOneSizeNeedOneBit) {
  EXPECT_EQ(pack({-2, 2, 2, -2, 2}, 1).back, (std::vector<float>{-2, 2, 2, -2, 2}));
}

}  // namespace
}  // namespace tamis
