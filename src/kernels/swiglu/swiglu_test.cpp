#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/swiglu/swiglu_impl.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

class SwigluTest : public testing::TestWithParam<const char*> {
 protected:
  SwigluTest() { context_.force("swiglu", GetParam()); }
  Floats run(const Floats& gate, const Floats& up, int64_t rows) {
    Floats y(gate.size() + 1, -7.0f);
    SwigluArgs a;
    a.gate = gate.data();
    a.up = up.data();
    a.rows = rows;
    a.width = rows == 0 ? 0 : static_cast<int64_t>(gate.size()) / rows;
    a.y = y.data();
    swiglu(context_, a);
    EXPECT_EQ(y.back(), -7.0f);
    y.pop_back();
    return y;
  }
  KernelContext context_{2};
};

TEST_P(SwigluTest, IsSiluTimesUp) {
  for (const int64_t width : {0, 1, 3, 7, 8, 9, 512, 4097}) {
    for (const int64_t rows : {1, 3}) {
      Floats gate = random_floats(rows * width, 1);
      const Floats up = random_floats(rows * width, 2);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] *= i % 3 == 0 ? 30.0f : 1.0f;
      const Floats y = run(gate, up, rows);
      for (size_t i = 0; i < gate.size(); ++i) {
        const double g = gate[i], exact = g / (1 + std::exp(-g)) * up[i];
        // Rounded: the exponential (2 units), the sum, the quotient, the product. Below e^-88 the
        // exponential overflows and the result is 0.
        const double tolerance = 10 * kUnitF32 * std::fabs(exact) + std::fabs(up[i]) * 0x1p-118;
        ASSERT_NEAR(y[i], exact, tolerance) << "gate " << g;
      }
    }
  }
}

TEST_P(SwigluTest, Extremes) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const Floats y =
      run({kNan, kInf, 200, -200, 1e38f, -1e38f, -kInf, 1, 1}, {1, 1, 1, 1, 1, 1, 1, kNan, 1}, 1);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], kInf);
  EXPECT_EQ(y[2], 200);
  EXPECT_EQ(y[3], 0);
  EXPECT_EQ(y[4], 1e38f);
  EXPECT_EQ(y[5], 0);
  EXPECT_TRUE(std::isnan(y[6]));
  EXPECT_TRUE(std::isnan(y[7]));
  EXPECT_FALSE(std::isnan(y[8]));
}

TEST_P(SwigluTest, BitsDoNotDependOnPlace) {
  const Floats gate = random_floats(9000, 3), up = random_floats(9000, 4);
  const Floats all = run(gate, up, 9);
  for (const size_t begin : {size_t{0}, size_t{1}, size_t{4093}, size_t{8997}}) {
    for (const size_t count : {size_t{1}, size_t{3}}) {
      const Floats y = run(Floats(&gate[begin], &gate[begin] + count),
                           Floats(&up[begin], &up[begin] + count), 1);
      EXPECT_EQ(std::memcmp(y.data(), &all[begin], count * sizeof(float)), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Implementations, SwigluTest, testing::Values("simd", "reference"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace tamis
