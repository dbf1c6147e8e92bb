#include <cmath>
#include <cstring>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

struct Result {
  Floats x, y;
};

class RmsNormCuda : public CudaTest {
 protected:
  Result run(const Floats& x, const Floats* delta, const Floats& w, int64_t rows, bool round) {
    Device<float> dx(context(), x), dw(context(), w);
    Device<float> dd(context(), delta == nullptr ? Floats{} : *delta);
    Device<float> dy(context(), static_cast<int64_t>(x.size()));
    const int64_t stride = rows == 0 ? 0 : static_cast<int64_t>(x.size()) / rows;
    RmsNormArgs a{dx.data(), stride,    delta == nullptr ? nullptr : dd.data(),
                  dw.data(), rows,      static_cast<int64_t>(w.size()),
                  1e-6f,     dy.data(), stride,
                  round};
    rms_norm(context(), a);
    return {dx.read(), dy.read()};
  }
  Result expect(Floats x, const Floats* delta, const Floats& w, int64_t rows, bool round) {
    Result r{std::move(x), {}};
    r.y.resize(r.x.size());
    const int64_t stride = rows == 0 ? 0 : static_cast<int64_t>(r.x.size()) / rows;
    rms_norm(reference(), {r.x.data(), stride, delta == nullptr ? nullptr : delta->data(), w.data(),
                           rows, static_cast<int64_t>(w.size()), 1e-6f, r.y.data(), stride, round});
    return r;
  }
};

TEST_F(RmsNormCuda, IsTheReferenceAtEveryWidth) {
  for (const int64_t width : {1, 3, 255, 256, 257, 576, 7168}) {
    for (const int64_t rows : {0, 1, 5}) {
      for (const int variant : {0, 1, 2, 3}) {
        const bool with_delta = variant % 2 == 1, round = variant >= 2;
        const int64_t stride = width + 2;
        const Floats x = random_floats(rows * stride, 1), d = random_floats(rows * width, 2);
        const Floats w = random_floats(width, 3);
        const Floats* delta = with_delta ? &d : nullptr;
        const Result got = run(x, delta, w, rows, round), want = expect(x, delta, w, rows, round);
        ASSERT_EQ(got.x, want.x);
        for (int64_t i = 0; i < rows * stride; ++i) {
          if (i % stride >= width) {
            ASSERT_TRUE(std::isnan(got.y[i])) << "wrote past the row";
            continue;
          }
          // Both round the same exact sum of squares, apart from double rounding: one unit of the
          // mean, halved by the root; then the two products. bf16 may then fall on either side.
          const double unit = round ? kUnitBf16 * 2 : 6 * kUnitF32;
          ASSERT_NEAR(got.y[i], want.y[i], unit * std::fabs(want.y[i])) << width << " " << i;
        }
      }
    }
  }
}

TEST_F(RmsNormCuda, BitsDoNotDependOnTheBatchOrTheRun) {
  const Floats x = random_floats(20 * 1000, 7), w = random_floats(1000, 8);
  const Result all = run(x, nullptr, w, 20, false);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const Floats one(&x[repeat * 1000], &x[repeat * 1000] + 1000);
    const Result r = run(one, nullptr, w, 1, false);
    ASSERT_EQ(std::memcmp(r.y.data(), &all.y[repeat * 1000], 1000 * sizeof(float)), 0);
  }
}

TEST_F(RmsNormCuda, SeveralAreAsEachAlone) {
  std::vector<Device<float>> xs, ws, alone, together;
  std::vector<RmsNormArgs> args;
  for (int64_t i = 0; i < 6; ++i) {
    const int64_t rows = i * 2 % 7, width = 100 + 57 * i;
    xs.emplace_back(context(), random_floats(rows * width, 9));
    ws.emplace_back(context(), random_floats(width, 10));
    alone.emplace_back(context(), rows * width);
    together.emplace_back(context(), rows * width);
    RmsNormArgs a{xs.back().data(),    width, nullptr,   ws.back().data(), rows, width, 1e-6F,
                  alone.back().data(), width, i % 2 == 1};
    rms_norm(context(), a);
    a.y = together.back().data();
    args.push_back(a);
  }
  rms_norms(context(), args);
  for (size_t i = 0; i < args.size(); ++i) EXPECT_EQ(together[i].read(), alone[i].read()) << i;
}

}  // namespace
}  // namespace tamis
