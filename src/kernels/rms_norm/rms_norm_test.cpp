#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

struct Result {
  Floats x, y;
};

class RmsNormTest : public testing::TestWithParam<const char*> {
 protected:
  RmsNormTest() { context_.force("rms_norm", GetParam()); }

  static Result run(KernelContext& context, Floats x, const Floats* delta, const Floats& w,
                    int64_t rows, bool round_bf16) {
    Result r{std::move(x), {}};
    r.y.assign(r.x.size(), -7.0f);
    RmsNormArgs a;
    a.width = static_cast<int64_t>(w.size());
    a.x = r.x.data();
    a.x_stride = a.y_stride = rows == 0 ? 0 : static_cast<int64_t>(r.x.size()) / rows;
    a.delta = delta == nullptr ? nullptr : delta->data();
    a.w = w.data();
    a.rows = rows;
    a.eps = 1e-6f;
    a.y = r.y.data();
    a.round_bf16 = round_bf16;
    rms_norm(context, a);
    return r;
  }

  KernelContext context_{2};
};

TEST_P(RmsNormTest, IsTheFormula) {
  for (const int64_t width : {1, 3, 7, 8, 9, 64, 1025}) {
    for (const int64_t rows : {0, 1, 5}) {
      for (const bool with_delta : {false, true}) {
        const int64_t stride = width + 2;
        const Floats x = random_floats(rows * stride, 1), delta = random_floats(rows * width, 2);
        const Floats w = random_floats(width, 3);
        const Result r = run(context_, x, with_delta ? &delta : nullptr, w, rows, false);
        for (int64_t row = 0; row < rows; ++row) {
          double sum = 0;
          for (int64_t i = 0; i < width; ++i) {
            float v = x[row * stride + i];
            if (with_delta) v += delta[row * width + i];
            ASSERT_EQ(r.x[row * stride + i], v);
            sum += static_cast<double>(v) * v;
          }
          const double scale = 1 / std::sqrt(sum / static_cast<double>(width) + 1e-6);
          for (int64_t i = 0; i < width; ++i) {
            // Rounded: mean, eps, their sum, root, reciprocal (half of the first three), products.
            const double exact = w[i] * (r.x[row * stride + i] * scale);
            ASSERT_NEAR(r.y[row * stride + i], exact, 6 * kUnitF32 * std::fabs(exact));
          }
          EXPECT_EQ(r.y[row * stride + width], -7.0f);
          EXPECT_EQ(r.x[row * stride + width], x[row * stride + width]);
        }
      }
    }
  }
}

TEST_P(RmsNormTest, RoundsOnceInBf16Order) {
  const Floats x = random_floats(3 * 77, 4), delta = random_floats(3 * 77, 5);
  const Floats w = random_floats(77, 6);
  const Result plain = run(context_, x, &delta, w, 3, false);
  const Result rounded = run(context_, x, &delta, w, 3, true);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(rounded.y[i], round_to_bf16(plain.y[i]));
    EXPECT_EQ(rounded.x[i], round_to_bf16(plain.x[i]));
  }
}

TEST_P(RmsNormTest, BitsDoNotDependOnTheBatchAndNanStaysInItsRow) {
  KernelContext one(1);
  one.force("rms_norm", GetParam());
  Floats x = random_floats(20 * 100, 7);
  x[5 * 100 + 99] = std::nanf("");
  const Floats w = random_floats(100, 8);
  const Result all = run(context_, x, nullptr, w, 20, false);
  for (int64_t row = 0; row < 20; ++row) {
    const Result r = run(one, Floats(&x[row * 100], &x[row * 100] + 100), nullptr, w, 1, false);
    if (row == 5) {
      EXPECT_TRUE(std::isnan(r.y[0]) && std::isnan(all.y[500]));
    } else {
      EXPECT_EQ(std::memcmp(r.y.data(), &all.y[row * 100], 100 * sizeof(float)), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Implementations, RmsNormTest, testing::Values("simd", "reference"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace tamis
