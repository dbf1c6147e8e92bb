#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/linear/linear_impl.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "kernels/simd/targets.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

LinearArgs arguments(const Weight& w, const Floats& x, int64_t m, Floats& y) {
  LinearArgs a;
  a.x = x.data();
  a.x_stride = w.cols;
  a.m = m;
  a.w = w;
  a.y = y.data();
  a.y_stride = w.rows;
  return a;
}

Floats product(KernelContext& context, const Weight& w, const Floats& x, int64_t m) {
  Floats y(static_cast<size_t>(m * w.rows), -7.0f);
  linear(context, arguments(w, x, m, y));
  return y;
}

// Against the sum in double of the dequantised weight, within the bound of a float32 sum.
void expect_close(const Weight& w, const Floats& x, int64_t m, const Floats& y,
                  const std::string& what) {
  Floats row(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    dequantize_row(w, r, 0, w.cols, row.data());
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < w.cols; ++c) sum += static_cast<double>(row[c]) * x[i * w.cols + c];
      const double tolerance =
          dot_tolerance(w.cols, norm2(&x[i * w.cols], w.cols), norm2(row.data(), w.cols));
      ASSERT_NEAR(y[i * w.rows + r], sum, tolerance) << what << " m " << i << " row " << r;
    }
  }
}

std::string shape(DType dtype, int64_t m, int64_t rows, int64_t cols) {
  return std::string(dtype_name(dtype)) + " m=" + std::to_string(m) +
         " rows=" + std::to_string(rows) + " cols=" + std::to_string(cols);
}

class LinearTest : public testing::TestWithParam<const char*> {
 protected:
  LinearTest() { context_.force("linear", GetParam()); }
  KernelContext context_{2};
};

TEST_P(LinearTest, IsTheProduct) {
  for (const DType dtype : kWeightFormats) {
    for (const int64_t cols : {0, 1, 3, 7, 8, 9, 31, 32, 33, 127, 128, 129, 511, 512, 513, 1100}) {
      for (const int64_t rows : {0, 1, 4, 5, 97}) {
        if (rows == 97 && cols % 32 != 1) continue;
        const TestWeight t = test_weight(dtype, rows, cols, 1);
        for (const int64_t m : {0, 1, 2, 3, 5, 8, 9, 10, 11, 13}) {
          const Floats x = random_floats(m * cols, 2);
          expect_close(t.w, x, m, product(context_, t.w, x, m), shape(dtype, m, rows, cols));
        }
      }
    }
  }
}

TEST_P(LinearTest, LongRows) {
  for (const DType dtype : kWeightFormats) {
    const TestWeight t = test_weight(dtype, 6, 7168, 3);
    for (const int64_t m : {1, 10}) {
      const Floats x = random_floats(m * 7168, 4);
      expect_close(t.w, x, m, product(context_, t.w, x, m), shape(dtype, m, 6, 7168));
    }
  }
}

TEST_P(LinearTest, StridesAndMisalignedRows) {
  constexpr int64_t kCols = 200, kRows = 9;
  for (const DType dtype : kWeightFormats) {
    const TestWeight t = test_weight(dtype, kRows, kCols, 5, 1, 3);
    for (const int64_t m : {1, 6, 17}) {
      const Floats packed = random_floats(m * kCols, 6);
      Floats x(static_cast<size_t>(m * 211 + 1), 1e30f), y(static_cast<size_t>(m * 13), -7.0f);
      for (int64_t i = 0; i < m; ++i) {
        std::copy_n(&packed[i * kCols], kCols, &x[i * 211 + 1]);
      }
      LinearArgs a = arguments(t.w, x, m, y);
      a.x += 1;
      a.x_stride = 211;
      a.y_stride = 13;
      linear(context_, a);
      Floats dense;
      for (int64_t i = 0; i < m; ++i) {
        dense.insert(dense.end(), &y[i * 13], &y[i * 13 + kRows]);
        for (int64_t r = kRows; r < 13; ++r) EXPECT_EQ(y[i * 13 + r], -7.0f);
      }
      expect_close(t.w, packed, m, dense, shape(dtype, m, kRows, kCols));
    }
  }
}

TEST_P(LinearTest, SlicesKeepTheirScales) {
  for (const DType dtype : {DType::kF8E4M3, DType::kI8, DType::kI4, DType::kBF16}) {
    const TestWeight t = test_weight(dtype, 300, 400, 7);
    const int64_t group = dtype == DType::kF8E4M3 || dtype == DType::kBF16 ? 1 : kIntGroup;
    for (const int64_t row : {0, 1, 100, 127, 129}) {
      for (const int64_t col : {int64_t{0}, 3 * group, 64 * 1L, 96 * 1L}) {
        const Weight w = t.w.row_slice(row, 140).col_slice(col, 250);
        for (const int64_t m : {1, 9}) {
          const Floats x = random_floats(m * w.cols, 8);
          expect_close(w, x, m, product(context_, w, x, m), shape(dtype, m, row, col));
        }
      }
    }
  }
}

TEST_P(LinearTest, OneHotInputGivesTheWeight) {
  // Every code of every format, in both paths: products with zeros and one are exact.
  for (const DType dtype : kWeightFormats) {
    const TestWeight t = test_weight(dtype, 160, 261, 9);
    const int64_t m = t.w.cols;
    Floats x(static_cast<size_t>(m * m));
    for (int64_t i = 0; i < m; ++i) x[i * m + i] = 1;
    const Floats y = product(context_, t.w, x, m);
    for (int64_t r = 0; r < t.w.rows; ++r) {
      const Floats row = t.row(r);
      for (int64_t c = 0; c < m; ++c) ASSERT_EQ(y[c * t.w.rows + r], row[c]) << dtype_name(dtype);
    }
    for (const int64_t c : {0, 31, 32, 200, 260}) {
      const Floats one(x.begin() + c * m, x.begin() + (c + 1) * m);
      const Floats alone = product(context_, t.w, one, 1);
      for (int64_t r = 0; r < t.w.rows; ++r) ASSERT_EQ(alone[r], t.row(r)[c]) << dtype_name(dtype);
    }
  }
}

TEST_P(LinearTest, NanAndInfinityReachTheirOutputsOnly) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const int64_t m : {3, 12}) {
    for (const int64_t bad : {0, 40, 69}) {
      TestWeight t = test_weight(DType::kF32, 6, 70, 10);
      Floats x(static_cast<size_t>(m * 70), 1.0f);
      x[70 + bad] = std::numeric_limits<float>::quiet_NaN();
      x[140 + bad] = kInf;
      std::memcpy(t.data.data() + 4 * t.w.row_bytes + bad * 4, &kInf, 4);
      const Floats y = product(context_, t.w, x, m);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t r = 0; r < 6; ++r) {
          const float v = y[i * 6 + r];
          if (i == 1) {
            EXPECT_TRUE(std::isnan(v));
          } else {
            EXPECT_EQ(std::isinf(v), i == 2 || r == 4) << i << " " << r;
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, NanCodesOfFp8AreNan) {
  TestWeight t = test_weight(DType::kF8E4M3, 5, 200, 11);
  for (const int64_t m : {1, 9}) {
    for (const int64_t c : {0, 31, 199}) {
      for (const int code : {0x7F, 0xFF}) {
        const std::byte before = t.data[static_cast<size_t>(2 * t.w.row_bytes + c)];
        t.data[static_cast<size_t>(2 * t.w.row_bytes + c)] = static_cast<std::byte>(code);
        const Floats y = product(context_, t.w, random_floats(m * 200, 12), m);
        for (int64_t r = 0; r < 5; ++r) EXPECT_EQ(std::isnan(y[r]), r == 2);
        t.data[static_cast<size_t>(2 * t.w.row_bytes + c)] = before;
      }
    }
  }
}

// Scales at which the vector conversions take another way.
TEST_P(LinearTest, ExtremeScales) {
  for (const DType dtype : {DType::kF8E4M3, DType::kI8, DType::kI4}) {
    for (const float scale : {0x1p-126f, 0x1p-98f, 0x1p-90f, 0x1p-30f, 127.0f, 0x1p7f, 0x1p100f}) {
      TestWeight t = test_weight(dtype, 5, 64, 18);
      const uint16_t half = float_to_bf16(scale);
      for (size_t i = 0; i < t.scales.size() / 4; ++i) {
        if (dtype == DType::kF8E4M3) std::memcpy(&t.scales[i * 4], &scale, 4);
        if (dtype != DType::kF8E4M3) std::memcpy(&t.scales[i * 2], &half, 2);
      }
      for (const int64_t m : {1, 64}) {
        Floats x(static_cast<size_t>(m * 64));
        for (int64_t i = 0; i < m; ++i) x[i * 65] = 1;
        const Floats y = product(context_, t.w, x, m);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t r = 0; r < 5; ++r) ASSERT_EQ(y[i * 5 + r], t.row(r)[i]) << scale;
        }
      }
    }
  }
}

// Rows alone, in batches of every size up to 70, among other products, with 1 to 3 threads.
TEST_P(LinearTest, BitsDoNotDependOnTheBatch) {
  KernelContext one(1), three(3);
  for (KernelContext* c : {&one, &three}) c->force("linear", GetParam());
  for (const DType dtype : kWeightFormats) {
    const TestWeight t = test_weight(dtype, 50, 555, 13), other = test_weight(dtype, 40, 64, 14);
    const int64_t rows = t.w.rows, cols = t.w.cols;
    const Floats x = random_floats(70 * cols, 15);
    Floats alone;
    for (int64_t i = 0; i < 70; ++i) {
      const Floats xi(x.begin() + i * cols, x.begin() + (i + 1) * cols);
      const Floats yi = product(one, t.w, xi, 1);
      alone.insert(alone.end(), yi.begin(), yi.end());
    }
    for (int64_t m = 1; m <= 70; m += m < 20 ? 1 : 7) {
      Floats y1(static_cast<size_t>(m * rows)), y2(static_cast<size_t>(30 * 40));
      const std::array<LinearArgs, 2> both = {arguments(other.w, x, 30, y2),
                                              arguments(t.w, x, m, y1)};
      linears(three, both);
      const Floats y = product(context_, t.w, x, m);
      const auto bytes = static_cast<size_t>(m * rows) * sizeof(float);
      ASSERT_EQ(std::memcmp(y.data(), alone.data(), bytes), 0) << shape(dtype, m, rows, cols);
      ASSERT_EQ(std::memcmp(y1.data(), alone.data(), bytes), 0) << shape(dtype, m, rows, cols);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Implementations, LinearTest, testing::Values("simd", "reference"),
                         [](const auto& param) { return std::string(param.param); });

class LinearFp8Test : public testing::TestWithParam<const char*> {
 protected:
  LinearFp8Test() { context_.force("linear_fp8", GetParam()); }
  Floats run(const Weight& w, const Floats& x, int64_t m, bool ue8m0) {
    Floats y(static_cast<size_t>(m * w.rows), -7.0f);
    linear_fp8(context_, {arguments(w, x, m, y), ue8m0});
    return y;
  }
  KernelContext context_{2};
};

TEST_P(LinearFp8Test, IsTheProductOfQuantisedRows) {
  for (const int64_t cols : {1, 100, 128, 129, 520}) {
    const TestWeight t = test_weight(DType::kF8E4M3, 131, cols, 20);
    for (const int64_t m : {0, 1, 9}) {
      for (const bool ue8m0 : {false, true}) {
        const Floats x = random_floats(m * cols, 21);
        Floats q(x.size());
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t c = 0; c < cols; c += kFp8Block) {
            const int64_t n = std::min(kFp8Block, cols - c);
            std::array<uint8_t, kFp8Block> codes;
            float scale;
            act_quant_row(&x[i * cols + c], n, ue8m0, codes.data(), &scale);
            for (int64_t k = 0; k < n; ++k) q[i * cols + c + k] = e4m3_to_float(codes[k]) * scale;
          }
        }
        const Floats y = run(t.w, x, m, ue8m0);
        expect_close(t.w, q, m, y, shape(DType::kF8E4M3, m, 131, cols));
        // Quantising matters: the product of the rows as they are is further away.
        if (m == 0 || cols < 100) continue;
        double worst = 0;
        const Floats plain = product(context_, t.w, x, m);
        for (size_t i = 0; i < y.size(); ++i)
          worst = std::max(worst, std::fabs(double{y[i]} - plain[i]));
        EXPECT_GT(worst, dot_tolerance(cols, norm2(q.data(), cols), norm2(t.row(0).data(), cols)));
      }
    }
  }
}

TEST_P(LinearFp8Test, RefusesOtherWeights) {
  const TestWeight t = test_weight(DType::kBF16, 4, 8, 22);
  EXPECT_THROW(run(t.w, Floats(8), 1, false), std::exception);
}

TEST_P(LinearFp8Test, BitsDoNotDependOnTheBatch) {
  const TestWeight t = test_weight(DType::kF8E4M3, 40, 300, 23);
  const Floats x = random_floats(20 * 300, 24);
  const Floats all = run(t.w, x, 20, true);
  for (int64_t i = 0; i < 20; ++i) {
    const Floats y = run(t.w, Floats(&x[i * 300], &x[i * 300] + 300), 1, true);
    ASSERT_EQ(std::memcmp(y.data(), &all[i * 40], 160), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Implementations, LinearFp8Test, testing::Values("simd", "reference"),
                         [](const auto& param) { return std::string(param.param); });

// The order that linear.h promises, in plain loops.
float ordered_dot(const Floats& w, const float* x) {
  constexpr size_t kChunk = 512;
  float total = 0;
  for (size_t begin = 0; begin < w.size(); begin += kChunk) {
    std::array<float, 8> lane = {};
    const size_t end = std::min(begin + kChunk, w.size());
    for (size_t c = begin; c < (end + 31) / 32 * 32; ++c) {
      float& l = lane[c % 8];
      l = c < end ? std::fma(w[c], x[c], l) : std::fma(0.0f, 0.0f, l);
    }
    const float sum =
        ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

TEST(LinearSimd, SumsInTheDocumentedOrder) {
  if (!vectors_available()) return;  // the reference has its own order
  KernelContext context(2);
  int differs_from_plain_order = 0;
  for (const DType dtype : kWeightFormats) {
    for (const int64_t cols : {5, 40, 520, 1300}) {
      const TestWeight t = test_weight(dtype, 7, cols, 16);
      for (const int64_t m : {1, 2, 4, 8, 9, 14}) {
        const Floats x = random_floats(m * cols, 17);
        const Floats y = product(context, t.w, x, m);
        for (int64_t i = 0; i < m * 7; ++i) {
          const Floats row = t.row(i % 7);
          const float* xi = &x[i / 7 * cols];
          ASSERT_EQ(y[i], ordered_dot(row, xi)) << shape(dtype, m, 7, cols) << " " << i;
          float plain = 0;
          for (int64_t c = 0; c < cols; ++c) plain = std::fma(row[c], xi[c], plain);
          differs_from_plain_order += plain != y[i] ? 1 : 0;
        }
      }
    }
  }
  EXPECT_GT(differs_from_plain_order, 100);  // the comparison can tell orders apart
}

}  // namespace
}  // namespace tamis
