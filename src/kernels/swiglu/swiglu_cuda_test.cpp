#include <cmath>
#include <limits>

#include "kernels/swiglu/swiglu.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using SwigluCuda = CudaTest;

TEST_F(SwigluCuda, IsTheReference) {
  for (const int64_t width : {1, 3, 64, 255, 1024, 2048}) {
    for (const int64_t rows : {0, 1, 5}) {
      for (const bool in_place : {false, true}) {
        std::vector<float> gate = random_floats(rows * width, 1),
                           up = random_floats(rows * width, 2);
        for (float& g : gate) g *= 20;
        if (rows > 0) gate[0] = -std::numeric_limits<float>::infinity();
        if (rows > 1) gate[1] = std::nanf("");
        if (rows > 1) gate[2] = std::numeric_limits<float>::infinity();
        if (rows > 1) gate[3] = -200;
        Device<float> g(context(), gate), u(context(), up), y(context(), rows * width);
        float* out = in_place ? g.data() : y.data();
        swiglu(context(), {g.data(), u.data(), rows, width, out});
        std::vector<float> want(gate.size());
        swiglu(reference(), {gate.data(), up.data(), rows, width, want.data()});
        const std::vector<float> got = in_place ? g.read() : y.read();
        for (size_t i = 0; i < want.size(); ++i) {
          if (std::isnan(want[i])) {
            ASSERT_TRUE(std::isnan(got[i])) << i;
            continue;
          }
          if (std::isinf(want[i])) {
            ASSERT_EQ(got[i], want[i]) << i;
            continue;
          }
          // Two exponentials of 2 ulp at most each, then three roundings each.
          ASSERT_NEAR(got[i], want[i], 14 * kUnitF32 * std::fabs(want[i]) + 1e-44) << gate[i];
        }
      }
    }
  }
}

// More than one launch takes, of different sizes.
TEST_F(SwigluCuda, SeveralAreAsEachAlone) {
  const std::vector<int64_t> widths = {64, 3, 1024, 0, 255, 5};
  std::vector<Device<float>> gates, ups, alone, together;
  std::vector<SwigluArgs> args;
  for (const int64_t width : widths) {
    gates.emplace_back(context(), random_floats(7 * width, 3));
    ups.emplace_back(context(), random_floats(7 * width, 4));
    alone.emplace_back(context(), 7 * width);
    together.emplace_back(context(), 7 * width);
    SwigluArgs a{gates.back().data(), ups.back().data(), 7, width, alone.back().data()};
    swiglu(context(), a);
    a.y = together.back().data();
    args.push_back(a);
  }
  swiglus(context(), args);
  for (size_t i = 0; i < widths.size(); ++i) EXPECT_EQ(together[i].read(), alone[i].read()) << i;
}

}  // namespace
}  // namespace tamis
