// What operations of training write in bf16 is what they write in float32, rounded once.
#include <cstring>
#include <random>

#include "kernels/moe_permute/moe_permute.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/test_weight.h"
#include "kernels/train_ops.h"
#include "support/cuda_device.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;
using Bits = std::vector<uint16_t>;

using TrainBf16Cuda = CudaTest;

Bits rounded(const Floats& x) {
  Bits bits;
  for (const float v : x) bits.push_back(float_to_bf16(v));
  return bits;
}

Bits ones(int64_t n) { return Bits(static_cast<size_t>(n), uint16_t{0xFFFF}); }  // not written

TEST_F(TrainBf16Cuda, RmsNorm) {
  for (const int64_t width : {1, 33, 128, 200, 256, 500, 1000, 1030}) {
    for (const int64_t rows : {0, 3, 2051}) {
      if (skip_case()) continue;
      const Floats x = random_floats(rows * width, 1), w = random_floats(width, 2);
      Device<float> gx(context(), x), gw(context(), w), gy(context(), rows * width);
      Device<uint16_t> bits(context(), rows * width);
      rms_norm(context(), {gx.data(), width, nullptr, gw.data(), rows, width, 1e-6F, gy.data(),
                           width, false, bits.data()});
      ASSERT_EQ(bits.read(), rounded(gy.read())) << width << " " << rows;
      Device<uint16_t> alone(context(), rows * width);
      rms_norm(context(), {gx.data(), width, nullptr, gw.data(), rows, width, 1e-6F, nullptr, width,
                           false, alone.data()});
      ASSERT_EQ(alone.read(), bits.read()) << width << " " << rows;
    }
  }
}

TEST_F(TrainBf16Cuda, RmsNormGradient) {
  for (const int64_t width : {1, 33, 128, 256, 500, 520}) {
    if (skip_case()) continue;
    const int64_t rows = 203, stride = width + 3;
    const Floats x = random_floats(rows * width, 1), w = random_floats(width, 2);
    const Floats dy = random_floats(rows * width, 3), dx = random_floats(rows * stride, 4);
    Device<float> gx(context(), x), gw(context(), w), gdy(context(), dy), gdx(context(), dx);
    Device<float> dw(context(), Floats(width)), dw2(context(), Floats(width));
    Device<uint16_t> bits(context(), rounded(dx)), alone(context(), ones(rows * stride));
    RmsNormBackwardArgs<float> a{gx.data(), width,      gw.data(), gdy.data(), rows,  width,
                                 1e-6F,     gdx.data(), stride,    dw.data(),  false, bits.data()};
    rms_norm_backward(context(), a);
    ASSERT_EQ(bits.read(), rounded(gdx.read())) << width;
    a.overwrite = true;
    a.dx_bf16 = nullptr;
    rms_norm_backward(context(), a);
    a.dx = nullptr;
    a.dx_bf16 = alone.data();
    a.dw = dw2.data();
    rms_norm_backward(context(), a);
    const Bits want = rounded(gdx.read()), got = alone.read();
    for (int64_t i = 0; i < rows * stride; ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(got[at], i % stride < width ? want[at] : 0xFFFF) << width << " " << i;
    }
  }
}

// Many rows take a warp each, few a block: the same bits.
TEST_F(TrainBf16Cuda, ManyRowsNormAsFewDo) {
  const int64_t rows = 2100, few = 100;
  for (const int64_t width : {1, 31, 128, 129, 256, 300, 512, 576, 1024}) {
    if (skip_case()) continue;
    const Floats x = random_floats(rows * width, 3), w = random_floats(width, 4);
    const Floats delta = random_floats(rows * width, 5);
    for (const bool round : {false, true}) {
      Device<float> all(context(), x), gw(context(), w), d(context(), delta);
      Device<float> y(context(), rows * width), parts(context(), x), z(context(), rows * width);
      const float* change = round ? d.data() : nullptr;
      rms_norm(context(),
               {all.data(), width, change, gw.data(), rows, width, 1e-6F, y.data(), width, round});
      for (int64_t r = 0; r < rows; r += few) {
        rms_norm(context(), {parts.data() + r * width, width, round ? change + r * width : nullptr,
                             gw.data(), few, width, 1e-6F, z.data() + r * width, width, round});
      }
      ASSERT_EQ(y.read(), z.read()) << width;
      ASSERT_EQ(all.read(), parts.read()) << width;
    }
  }
}

TEST_F(TrainBf16Cuda, Values) {
  for (const int64_t n : {0, 1, 7, 8, 2048, 70001}) {
    for (const int64_t from : {0, 1}) {
      const Floats x = random_floats(n + from, 1);
      Device<float> gx(context(), x);
      Device<uint16_t> y(context(), ones(n + from));
      round_values(context(), gx.data() + from, n, y.data() + from);
      Bits want = rounded(x);
      if (from > 0) want[0] = 0xFFFF;
      ASSERT_EQ(y.read(), want) << n;
      Bits on_cpu = ones(n + from);
      round_values(reference(), x.data() + from, n, on_cpu.data() + from);
      ASSERT_EQ(on_cpu, want) << n;
    }
  }
}

TEST_F(TrainBf16Cuda, Swiglu) {
  for (const int64_t n : {0, 1, 255, 1024, 70001}) {
    const Floats gate = random_floats(n, 1), up = random_floats(n, 2), dy = random_floats(n, 3);
    Device<float> g(context(), gate), u(context(), up), d(context(), dy), y(context(), n);
    Device<float> dgate(context(), n), dup(context(), n);
    Device<uint16_t> y16(context(), n), dgate16(context(), n), dup16(context(), n);
    swiglu(context(), {g.data(), u.data(), 1, n, y.data()});
    swiglu(context(), {g.data(), u.data(), 1, n, nullptr, y16.data()});
    ASSERT_EQ(y16.read(), rounded(y.read())) << n;
    swiglu_backward<float>(context(),
                           {g.data(), u.data(), d.data(), 1, n, dgate.data(), dup.data()});
    swiglu_backward<float>(context(), {g.data(), u.data(), d.data(), 1, n, nullptr, nullptr,
                                       dgate16.data(), dup16.data()});
    ASSERT_EQ(dgate16.read(), rounded(dgate.read())) << n;
    ASSERT_EQ(dup16.read(), rounded(dup.read())) << n;
  }
}

// Both gradients side by side, as one product takes them.
TEST_F(TrainBf16Cuda, SwigluGradientsSideBySide) {
  for (const int64_t width : {1, 6, 64, 200}) {
    const int64_t rows = 9, n = rows * width;
    const Floats gate = random_floats(n, 1), up = random_floats(n, 2), dy = random_floats(n, 3);
    Device<float> g(context(), gate), u(context(), up), d(context(), dy);
    Device<float> dgate(context(), n), dup(context(), n);
    Device<uint16_t> both(context(), 2 * n);
    swiglu_backward<float>(context(),
                           {g.data(), u.data(), d.data(), rows, width, dgate.data(), dup.data()});
    swiglu_backward<float>(context(), {g.data(), u.data(), d.data(), rows, width, nullptr, nullptr,
                                       both.data(), both.data() + width, 2 * width});
    const Bits got = both.read(), a = rounded(dgate.read()), b = rounded(dup.read());
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = i / width * 2 * width + i % width;
      ASSERT_EQ(got[at], a[i]) << width;
      ASSERT_EQ(got[at + width], b[i]) << width;
    }
  }
}

TEST_F(TrainBf16Cuda, ExpertRows) {
  const int64_t experts = 5, chosen = 3;
  for (const int64_t width : {1, 64, 132, 200}) {
    for (const int64_t tokens : {1, 70}) {
      const int64_t pairs = tokens * chosen;
      std::mt19937 generator(1);
      std::vector<int32_t> ids(static_cast<size_t>(pairs));
      for (int32_t& id : ids) id = static_cast<int32_t>(generator() % experts);
      const Floats x = random_floats(tokens * width, 2), weights = random_floats(pairs, 3);
      Device<int32_t> gi(context(), ids), row_of(context(), pairs);
      Device<int64_t> offsets(context(), experts + 1);
      Device<float> gx(context(), x), gw(context(), weights), rows(context(), pairs * width);
      Device<uint16_t> rows16(context(), pairs * width), drows16(context(), pairs * width);
      moe_permute(context(), {gi.data(), tokens, chosen, experts, gx.data(), width, row_of.data(),
                              offsets.data(), rows.data()});
      moe_permute(context(), {gi.data(), tokens, chosen, experts, gx.data(), width, row_of.data(),
                              offsets.data(), nullptr, rows16.data()});
      ASSERT_EQ(rows16.read(), rounded(rows.read())) << width;
      Device<float> drows(context(), pairs * width), dweights(context(), pairs),
          again(context(), pairs);
      moe_combine_backward<float>(
          context(), {rows.data(), row_of.data(), gw.data(), gx.data(), tokens, chosen, width,
                      drows.data(), dweights.data()});
      moe_combine_backward<float>(
          context(), {rows.data(), row_of.data(), gw.data(), gx.data(), tokens, chosen, width,
                      nullptr, again.data(), drows16.data()});
      ASSERT_EQ(drows16.read(), rounded(drows.read())) << width;
      ASSERT_EQ(again.read(), dweights.read());
    }
  }
}

TEST_F(TrainBf16Cuda, CrossEntropy) {
  for (const int64_t vocabulary : {1, 2, 511, 514, 8192, 8193, 9000}) {
    const int64_t rows = 5, n = rows * vocabulary;
    const Floats logits = random_floats(n, 1);
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < rows; ++r) {
      targets.push_back(r == 3 ? -1 : static_cast<int32_t>(r * 77 % vocabulary));
    }
    Device<float> x(context(), logits), y(context(), logits);
    Device<int32_t> t(context(), targets);
    Device<double> loss(context(), rows), other(context(), rows);
    Device<uint16_t> bits(context(), ones(n));
    cross_entropy_backward<float>(context(),
                                  {x.data(), t.data(), rows, vocabulary, 0.25, loss.data()});
    cross_entropy_backward<float>(
        context(), {y.data(), t.data(), rows, vocabulary, 0.25, other.data(), bits.data()});
    ASSERT_EQ(bits.read(), rounded(x.read())) << vocabulary;
    ASSERT_EQ(other.read(), loss.read());
  }
}

}  // namespace
}  // namespace tamis
