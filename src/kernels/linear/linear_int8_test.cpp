#include "kernels/linear/linear_int8.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/integer_weight.h"
#include "kernels/linear/linear_int8_impl.h"
#include "kernels/simd/targets.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr DType kFormats[] = {DType::kI8, DType::kI4};

LinearArgs arguments(const Weight& w, const Floats& x, int64_t m, Floats& y) {
  return {x.data(), w.cols, m, w, y.data(), w.rows};
}

Floats product(KernelContext& context, const Weight& w, const Floats& x, int64_t m) {
  Floats y(static_cast<size_t>(m * w.rows), -7.0F);
  const LinearArgs a = arguments(w, x, m, y);
  linears_int8(context, {&a, 1});
  return y;
}

// What linear_int8.h says, in the plainest loops, from the dequantised weight's two factors.
float defined(const Weight& w, int64_t r, const float* x) {
  float y = 0;
  for (int64_t begin = 0; begin < w.cols; begin += kIntGroup) {
    const int64_t n = std::min(kIntGroup, w.cols - begin);
    std::array<int8_t, kIntGroup> q_w, q_x;
    integer_row(w, r, begin, n, q_w.data());
    const float s_x = quantize_int8(x + begin, n, q_x.data());
    double sum = 0;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) sum += double{1.0} * q_w[i] * q_x[i];
    y = std::fma(static_cast<float>(sum), group_scale(w, r, begin) * s_x, y);
  }
  return y;
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void expect_defined(const Weight& w, const Floats& x, int64_t m, const Floats& y,
                    const std::string& what) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t r = 0; r < w.rows; ++r) {
      const float want = defined(w, r, &x[static_cast<size_t>(i * w.cols)]);
      ASSERT_TRUE(same(y[static_cast<size_t>(i * w.rows + r)], want))
          << what << " m " << i << " row " << r << ": " << y[static_cast<size_t>(i * w.rows + r)]
          << " instead of " << want;
    }
  }
}

std::string shape(DType dtype, int64_t m, int64_t rows, int64_t cols) {
  return std::string(dtype_name(dtype)) + " m=" + std::to_string(m) +
         " rows=" + std::to_string(rows) + " cols=" + std::to_string(cols);
}

class LinearInt8Test : public testing::TestWithParam<const char*> {
 protected:
  LinearInt8Test() { context_.force("linear_int8", GetParam()); }
  KernelContext context_{2};
};

TEST_P(LinearInt8Test, HasTheDocumentedBits) {
  for (const DType dtype : kFormats) {
    for (const int64_t cols : {0, 1, 7, 31, 32, 33, 64, 255, 256, 257, 500, 512, 513, 800, 1100}) {
      for (const int64_t rows : {0, 1, 7, 8, 9, 15, 16, 17, 70}) {
        if (rows > 9 && cols % 32 > 1) continue;
        const TestWeight t = test_weight(dtype, rows, cols, 1);
        for (const int64_t m : {0, 1, 2, 3, 4, 5, 8, 9, 14}) {
          const Floats x = random_floats(m * cols, 2);
          expect_defined(t.w, x, m, product(context_, t.w, x, m), shape(dtype, m, rows, cols));
        }
      }
    }
  }
}

TEST_P(LinearInt8Test, LongRowsAndManyRows) {
  for (const DType dtype : kFormats) {
    const TestWeight t = test_weight(dtype, 19, 7168, 3), tall = test_weight(dtype, 700, 96, 3);
    for (const int64_t m : {1, 6, 140}) {
      const Floats x = random_floats(m * 7168, 4);
      expect_defined(t.w, x, m, product(context_, t.w, x, m), shape(dtype, m, 19, 7168));
      expect_defined(tall.w, x, m, product(context_, tall.w, x, m), shape(dtype, m, 700, 96));
    }
  }
}

TEST_P(LinearInt8Test, StridesAndMisalignedRows) {
  constexpr int64_t kCols = 200, kRows = 9;
  for (const DType dtype : kFormats) {
    const TestWeight t = test_weight(dtype, kRows, kCols, 5, 1, 3);
    for (const int64_t m : {1, 6, 17}) {
      const Floats packed = random_floats(m * kCols, 6);
      Floats x(static_cast<size_t>(m * 211 + 1), 1e30F), y(static_cast<size_t>(m * 13), -7.0F);
      for (int64_t i = 0; i < m; ++i) std::copy_n(&packed[i * kCols], kCols, &x[i * 211 + 1]);
      LinearArgs a = arguments(t.w, x, m, y);
      a.x += 1;
      a.x_stride = 211;
      a.y_stride = 13;
      linears_int8(context_, {&a, 1});
      Floats dense;
      for (int64_t i = 0; i < m; ++i) {
        dense.insert(dense.end(), &y[i * 13], &y[i * 13 + kRows]);
        for (int64_t r = kRows; r < 13; ++r) EXPECT_EQ(y[i * 13 + r], -7.0F);
      }
      expect_defined(t.w, packed, m, dense, shape(dtype, m, kRows, kCols));
    }
  }
}

TEST_P(LinearInt8Test, SlicesKeepTheirScales) {
  for (const DType dtype : kFormats) {
    const TestWeight t = test_weight(dtype, 300, 400, 7);
    for (const int64_t row : {0, 1, 129}) {
      for (const int64_t col : {0, 32, 96}) {
        const Weight w = t.w.row_slice(row, 140).col_slice(col, 250);
        for (const int64_t m : {1, 9}) {
          const Floats x = random_floats(m * w.cols, 8);
          expect_defined(w, x, m, product(context_, w, x, m), shape(dtype, m, row, col));
        }
      }
    }
  }
}

// Zero groups, groups that are nearly zero or very large, ties, signed zeros, all codes of W.
TEST_P(LinearInt8Test, HostileValues) {
  constexpr int64_t kCols = 256;
  for (const DType dtype : kFormats) {
    TestWeight t = test_weight(dtype, 17, kCols, 9);
    const auto fill = [&](int64_t row, uint8_t code) {
      std::fill_n(t.data.begin() + row * t.w.row_bytes, t.w.row_bytes, std::byte{code});
    };
    fill(0, 0x80), fill(1, 0x7F), fill(2, 0x88), fill(3, 0);
    const uint16_t huge = float_to_bf16(0x1p100F), nan = float_to_bf16(kNan);
    std::memcpy(t.scales.data() + 4 * t.w.scale_stride * 2, &huge, 2);
    std::memcpy(t.scales.data() + 5 * t.w.scale_stride * 2, &nan, 2);
    for (const int64_t m : {1, 2, 12}) {
      Floats x(static_cast<size_t>(m * kCols));
      const float groups[] = {0.0F,      -0.0F, 0x1p-149F, 0x1.fffffep-101F,
                              0x1p-100F, 3e38F, -127.0F,   0x1.fffffep127F};
      for (int64_t i = 0; i < m * kCols; ++i) {
        const float sign = i % 3 == 0 ? -1.0F : 1.0F;
        x[static_cast<size_t>(i)] =
            groups[i / 32 % 8] * sign * (i % 32 == 5 ? 1.0F : static_cast<float>(i % 32) / 254.0F);
      }
      const Floats y = product(context_, t.w, x, m);
      expect_defined(t.w, x, m, y, shape(dtype, m, 17, kCols));
      EXPECT_TRUE(std::isnan(y[5]));
      EXPECT_EQ(y[3], 0.0F);
    }
  }
}

TEST_P(LinearInt8Test, NanAndInfinityMakeTheirRowNan) {
  const TestWeight t = test_weight(DType::kI8, 9, 300, 10);
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const int64_t at : {0, 40, 299}) {
      for (const int64_t m : {2, 12}) {
        Floats x = random_floats(m * 300, 11);
        x[static_cast<size_t>(300 + at)] = bad;
        const Floats y = product(context_, t.w, x, m);
        for (int64_t i = 0; i < m * 9; ++i) {
          EXPECT_EQ(std::isnan(y[static_cast<size_t>(i)]), i / 9 == 1) << i;
        }
      }
    }
  }
}

// Against the product that keeps x: |error| <= sum over groups of |s_x| / 2 * sum |w|, and the
// rounding of s_x, q and the float32 sum.
TEST_P(LinearInt8Test, ErrorIsThatOfRoundingX) {
  double largest = 0;
  for (const DType dtype : kFormats) {
    const TestWeight t = test_weight(dtype, 33, 1000, 12);
    const Floats x = random_floats(5 * 1000, 13);
    const Floats y = product(context_, t.w, x, 5);
    for (int64_t i = 0; i < 5 * 33; ++i) {
      const Floats w = t.row(i % 33);
      const float* xi = &x[static_cast<size_t>(i / 33 * 1000)];
      double sum = 0, bound = 0;
      for (int64_t begin = 0; begin < 1000; begin += kIntGroup) {
        std::array<int8_t, kIntGroup> q;
        const int64_t n = std::min(kIntGroup, 1000 - begin);
        const double step = quantize_int8(xi + begin, n, q.data());
        for (int64_t c = begin; c < begin + n; ++c) {
          sum += double{w[static_cast<size_t>(c)]} * xi[c];
          // Half a step; the step, its inverse and the product of x with it are rounded, 127 times
          // the relative error at most.
          bound += std::fabs(w[static_cast<size_t>(c)]) * step * (0.5 + 3 * 127 * kUnitF32);
        }
      }
      bound += dot_tolerance(1000, norm2(xi, 1000), norm2(w.data(), 1000));
      const double error = std::fabs(y[static_cast<size_t>(i)] - sum);
      ASSERT_LE(error, bound);
      largest = std::max(largest, error / bound);
    }
  }
  EXPECT_GT(largest, 0.01);  // and it is not the product that keeps x
}

// Rows alone, in batches of every size up to 70, among other products, with 1 to 3 threads.
TEST_P(LinearInt8Test, BitsDoNotDependOnTheBatch) {
  KernelContext one(1), three(3);
  for (KernelContext* c : {&one, &three}) c->force("linear_int8", GetParam());
  for (const DType dtype : kFormats) {
    const TestWeight t = test_weight(dtype, 50, 555, 14), other = test_weight(dtype, 40, 64, 15);
    const TestWeight i4 = test_weight(DType::kI4, 21, 555, 16);
    const int64_t rows = t.w.rows, cols = t.w.cols;
    const Floats x = random_floats(70 * cols, 17);
    Floats alone;
    for (int64_t i = 0; i < 70; ++i) {
      const Floats yi = product(one, t.w, Floats(&x[i * cols], &x[i * cols] + cols), 1);
      alone.insert(alone.end(), yi.begin(), yi.end());
    }
    for (int64_t m = 1; m <= 70; m += m < 20 ? 1 : 7) {
      Floats y1(static_cast<size_t>(m * rows)), y2(30 * 40), y3(static_cast<size_t>(m * 21)), y4;
      // The second and the third have the same x in different formats, the fourth nothing to do.
      const std::array<LinearArgs, 4> both = {arguments(other.w, x, 30, y2),
                                              arguments(t.w, x, m, y1), arguments(i4.w, x, m, y3),
                                              arguments(i4.w, x, 0, y4)};
      linears_int8(three, both);
      const auto bytes = static_cast<size_t>(m * rows) * sizeof(float);
      ASSERT_EQ(std::memcmp(y1.data(), alone.data(), bytes), 0) << shape(dtype, m, rows, cols);
      const Floats y = product(context_, t.w, x, m), z = product(context_, i4.w, x, m);
      ASSERT_EQ(std::memcmp(y.data(), alone.data(), bytes), 0) << shape(dtype, m, rows, cols);
      ASSERT_EQ(z, y3);
    }
  }
}

TEST_P(LinearInt8Test, RefusesOtherWeights) {
  const TestWeight t = test_weight(DType::kBF16, 4, 8, 22);
  EXPECT_THROW(product(context_, t.w, Floats(8), 1), std::exception);
}

INSTANTIATE_TEST_SUITE_P(Implementations, LinearInt8Test, testing::Values("simd", "reference"),
                         [](const auto& param) { return std::string(param.param); });

TEST(QuantizeInt8, RoundsHalfToEvenAndNeverGivesMinus128) {
  const Floats x = {127.0F, -127.0F, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F, 0.49F};
  std::array<int8_t, 9> q;
  EXPECT_EQ(quantize_int8(x.data(), 9, q.data()), 1.0F);
  EXPECT_EQ(q, (std::array<int8_t, 9>{127, -127, 0, 2, 2, 0, -2, -2, 0}));
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    Floats y = random_floats(32, seed);
    const float factor = std::exp2(static_cast<float>(seed % 200) - 98.0F);
    for (float& v : y) v *= factor;
    std::array<int8_t, 32> codes;
    const float scale = quantize_int8(y.data(), 32, codes.data());
    int largest = 0;
    for (size_t i = 0; i < 32; ++i) {
      largest = std::max(largest, std::abs(int{codes[i]}));
      ASSERT_LE(std::fabs(double{y[i]} - double{scale} * codes[i]),
                double{scale} * (0.5 + 3 * 127 * kUnitF32));
    }
    EXPECT_EQ(largest, 127);
  }
}

}  // namespace
}  // namespace tamis
