#include <cmath>
#include <cstring>

#include "base/error.h"
#include "kernels/matmul/grouped_matmul.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

// A product of matrices that lie as told, with rows of C `gap` values apart from each other.
struct Shape {
  int64_t m, n, inner;
  bool a_transposed, b_transposed, accumulate;
};

constexpr int64_t kGap = 3;

MatmulArgs<float> args_of(const Shape& s, const float* a, const float* b, float* c) {
  MatmulArgs<float> x;
  x.a = a;
  x.a_row = s.a_transposed ? 1 : s.inner;
  x.a_col = s.a_transposed ? s.m : 1;
  x.b = b;
  x.b_row = s.b_transposed ? 1 : s.n;
  x.b_col = s.b_transposed ? s.inner : 1;
  x.c = c;
  x.c_row = s.n + kGap;
  x.m = s.m;
  x.n = s.n;
  x.inner = s.inner;
  x.accumulate = s.accumulate;
  return x;
}

class MatmulCuda : public CudaTest {
 protected:
  // c is what it was before; `got` what became of it.
  void expect_product(const MatmulArgs<float>& x, const Floats& c, const Floats& got,
                      double roundings = 1) {
    for (int64_t i = 0; i < x.m; ++i) {
      for (int64_t j = 0; j < x.n; ++j) {
        const auto at = static_cast<size_t>(i * x.c_row + j);
        const float start = x.accumulate ? c[at] : 0;
        double want = start, a2 = static_cast<double>(start) * start, b2 = 1;
        for (int64_t l = 0; l < x.inner; ++l) {
          const double a = x.a[i * x.a_row + l * x.a_col], b = x.b[l * x.b_row + j * x.b_col];
          want += a * b;
          a2 += a * a;
          b2 += b * b;
        }
        ASSERT_NEAR(got[at], want,
                    roundings * dot_tolerance(x.inner + 1, std::sqrt(a2), std::sqrt(b2)))
            << x.m << "x" << x.n << "x" << x.inner << " at " << i << "," << j;
      }
      for (int64_t j = x.n; j < x.c_row; ++j) {
        const auto at = static_cast<size_t>(i * x.c_row + j);
        ASSERT_EQ(got[at], c[at]) << "wrote between rows";
      }
    }
  }

  void check(const Shape& s) {
    if (skip_case()) return;
    const Floats a = random_floats(s.m * s.inner + 1, 1), b = random_floats(s.inner * s.n + 1, 2);
    const Floats c = random_floats(s.m * (s.n + kGap) + 1, 3);
    Device<float> da(context(), a), db(context(), b);
    Floats first;
    for (int repeat = 0; repeat < 2; ++repeat) {
      Device<float> dc(context(), c);
      matmul(context(), args_of(s, da.data(), db.data(), dc.data()));
      const Floats got = dc.read();
      if (repeat > 0) {
        ASSERT_EQ(std::memcmp(got.data(), first.data(), 4 * got.size()), 0) << "other bits";
        return;
      }
      first = got;
      Floats unused;
      expect_product(args_of(s, a.data(), b.data(), unused.data()), c, got);
    }
  }

  void check_bf16(const Shape& s) {
    if (skip_case()) return;
    Floats a = random_floats(s.m * s.inner + 1, 1), b = random_floats(s.inner * s.n + 1, 2);
    for (float& x : a) x = round_to_bf16(x);
    for (float& x : b) x = round_to_bf16(x);
    const Floats c = random_floats(s.m * (s.n + kGap) + 1, 3);
    Device<float> da(context(), a), db(context(), b), dc(context(), c), again(context(), c);
    matmul(context(), args_of(s, da.data(), db.data(), dc.data()));
    matmul(context(), args_of(s, da.data(), db.data(), again.data()));
    const Floats got = dc.read();
    Floats unused;
    expect_product(args_of(s, a.data(), b.data(), unused.data()), c, got, 2);
    ASSERT_EQ(std::memcmp(again.read().data(), got.data(), 4 * got.size()), 0);
  }

  void groups_are_their_products(int64_t n, int64_t k, bool bf16) {
    const std::vector<std::vector<int64_t>> all = {
        {0, 0, 0}, {0, 5, 5, 300}, {0, 128, 256, 257, 257}, {0, 2000}, {0, 3, 1100, 1100, 2501}};
    for (const std::vector<int64_t>& offsets : all) {
      if (skip_case()) continue;
      const auto groups = static_cast<int64_t>(offsets.size()) - 1;
      const int64_t rows = offsets.back();
      Floats x = random_floats(rows * k + 1, 1), y = random_floats(rows * n + 1, 2);
      Floats w = random_floats(groups * n * k, 3);
      for (Floats* factor : {&x, &y, &w}) {
        if (!bf16) break;
        for (float& v : *factor) v = round_to_bf16(v);
      }
      const Floats out = random_floats(rows * n + 1, 4);
      const Floats wide = random_floats(groups * n * k, 5);
      Device<float> dx(context(), x), dy(context(), y), dw(context(), w);
      Device<int64_t> d_offsets(context(), offsets);
      for (const bool add : {false, true}) {
        Device<float> d_out(context(), out), d_wide(context(), wide);
        // out = x W^T of each group; wide = y^T x.
        const auto over_rows = [&](const float* a, const float* b, float* c, const int64_t* at) {
          return GroupedMatmulArgs<float>{
              {a, k, 1, b, 1, k, c, n, rows, n, k, add}, GroupedOver::kRows, n * k, at, groups};
        };
        const auto over_inner = [&](const float* a, const float* b, float* c, const int64_t* at) {
          return GroupedMatmulArgs<float>{
              {a, 1, n, b, k, 1, c, k, n, k, rows, add}, GroupedOver::kInner, n * k, at, groups};
        };
        const GroupedMatmulArgs<float> list[] = {
            over_rows(dx.data(), dw.data(), d_out.data(), d_offsets.data()),
            over_inner(dy.data(), dx.data(), d_wide.data(), d_offsets.data())};
        grouped_matmuls<float>(context(), list);
        const Floats got_out = d_out.read(), got_wide = d_wide.read();
        Floats base_out = out, base_wide = wide;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t first = offsets[static_cast<size_t>(g)];
          const int64_t last = offsets[static_cast<size_t>(g) + 1];
          const MatmulArgs<float> a = product_of_group(
              over_rows(x.data(), w.data(), base_out.data(), nullptr), g, first, last);
          const int64_t at = first * n, wide_at = g * n * k;
          expect_product(a, Floats(out.begin() + at, out.end()),
                         Floats(got_out.begin() + at, got_out.end()), bf16 ? 2 : 1);
          const MatmulArgs<float> b = product_of_group(
              over_inner(y.data(), x.data(), base_wide.data(), nullptr), g, first, last);
          expect_product(b, Floats(wide.begin() + wide_at, wide.end()),
                         Floats(got_wide.begin() + wide_at, got_wide.end()), bf16 ? 2 : 1);
        }
        EXPECT_EQ(got_out.back(), out.back()) << "wrote past the last row";
      }
    }
  }
};

TEST_F(MatmulCuda, IsTheProductOfEveryShapeAndLayout) {
  int64_t n_shapes = 0;
  for (const int64_t m : {0, 1, 5, 64, 65, 128, 131}) {
    for (const int64_t n : {0, 1, 15, 64, 129}) {
      for (const int64_t inner : {0, 1, 15, 16, 17, 100}) {
        const bool ta = n_shapes % 2 != 0, tb = n_shapes / 2 % 2 != 0;
        check({m, n, inner, ta, tb, n_shapes % 3 == 0});
        ++n_shapes;
      }
    }
  }
}

// Few tiles and a long inner length: cut into pieces.
TEST_F(MatmulCuda, LongSumsAreTheProduct) {
  for (const int64_t inner : {511, 1024, 5000}) {
    for (const bool ta : {false, true}) {
      check({40, 70, inner, ta, false, true});
      check({130, 66, inner, ta, true, false});
    }
  }
}

// Factors that bf16 holds, so only the sums round: a product of the tensor cores is exact, and an
// addition there may drop what is below the last place instead of rounding it, twice the error.
TEST_F(MatmulCuda, Bf16IsTheProductOfRoundedFactors) {
  context().force("matmul", "cuda_bf16");
  int n_shapes = 0;
  for (const int64_t m : {64, 65, 128, 300}) {
    for (const int64_t n : {64, 66, 129, 256}) {
      for (const int64_t inner : {1, 15, 16, 17, 100, 700, 3000}) {
        check_bf16({m, n, inner, n_shapes % 2 != 0, n_shapes / 2 % 2 != 0, n_shapes % 3 == 0});
        ++n_shapes;
      }
    }
  }
}

// C rounded, turned and rounded, and what is added to: the bits of doing so to a product in
// float32.
TEST_F(MatmulCuda, Bf16ProductsAreWrittenAsAsked) {
  context().force("matmul", "cuda_bf16");
  struct Case {
    int64_t m, n, inner, width, first, half;
  };
  for (const Case& c : {Case{64, 64, 64, 64, 32, 16}, Case{70, 144, 72, 48, 40, 4},
                        Case{300, 768, 256, 192, 128, 32}, Case{1000, 256, 520, 128, 0, 10},
                        Case{8200, 192, 128, 96, 64, 16}}) {
    if (skip_case()) continue;
    const Floats a = random_floats(c.m * c.inner, 1), b = random_floats(c.n * c.inner, 2);
    const Floats cos = random_floats(c.m * c.half, 3), sin = random_floats(c.m * c.half, 4);
    const Floats add = random_floats(c.m * c.n, 5);
    Device<float> da(context(), a), db(context(), b), dc(context(), c.m * c.n);
    Device<float> dcos(context(), cos), dsin(context(), sin), dadd(context(), add);
    Device<uint16_t> bits(context(), c.m * c.n), turned(context(), c.m * c.n);
    Device<float> sum(context(), c.m * c.n);
    MatmulArgs<float> p{da.data(), c.inner, 1,   db.data(), 1,      c.inner,
                        dc.data(), c.n,     c.m, c.n,       c.inner};
    matmul(context(), p);
    p.c = sum.data();
    p.add = dadd.data();
    matmul(context(), p);
    p.c = nullptr;
    p.add = nullptr;
    p.c_bf16 = bits.data();
    matmul(context(), p);
    p.c_bf16 = turned.data();
    p.turned = {dcos.data(), dsin.data(), c.width, c.first, c.half};
    matmul(context(), p);
    Floats want = dc.read();
    const std::vector<uint16_t> got = bits.read(), got_turned = turned.read();
    const Floats got_sum = sum.read();
    for (int64_t i = 0; i < c.m * c.n; ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(got[at], float_to_bf16(want[at])) << i;
      ASSERT_EQ(got_sum[at], add[at] + want[at]) << i;
    }
    for (int64_t row = 0; row < c.m; ++row) {
      for (int64_t head = 0; head < c.n; head += c.width) {
        for (int64_t i = 0; i < c.half; ++i) {
          float* x = &want[static_cast<size_t>(row * c.n + head + c.first + 2 * i)];
          const auto angle = static_cast<size_t>(row * c.half + i);
          const float first = x[0] * cos[angle] - x[1] * sin[angle];
          x[1] = x[1] * cos[angle] + x[0] * sin[angle];
          x[0] = first;
        }
      }
    }
    for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got_turned[i], float_to_bf16(want[i])) << i;
    p.accumulate = true;
    EXPECT_THROW(matmul(context(), p), UsageError);
  }
}

// Factors that the caller has rounded: the bits are those of rounding them here, and the float32
// ones are not read where a width allows it.
TEST_F(MatmulCuda, Bf16FactorsAreReadWhereTheyAre) {
  context().force("matmul", "cuda_bf16");
  ASSERT_TRUE(reads_bf16(context(), 77, {64, 200}));
  ASSERT_FALSE(reads_bf16(context(), 77, {64, 201}));
  ASSERT_FALSE(reads_bf16(context(), 77, {56}));
  ASSERT_FALSE(reads_bf16(context(), 63, {64}));
  int n_shapes = 0;
  for (const int64_t m : {64, 136, 320}) {
    for (const int64_t n : {64, 200, 256}) {
      for (const int64_t inner : {64, 72, 1000, 4096}) {
        const Shape s{m, n, inner, n_shapes % 2 != 0, n_shapes / 2 % 2 != 0, n_shapes % 3 == 0};
        ++n_shapes;
        if (skip_case()) continue;
        const Floats a = random_floats(m * inner, 1), b = random_floats(inner * n, 2);
        const Floats c = random_floats(m * (n + kGap) + 1, 3);
        std::vector<uint16_t> a16, b16;
        for (const float x : a) a16.push_back(float_to_bf16(x));
        for (const float x : b) b16.push_back(float_to_bf16(x));
        Device<float> da(context(), a), db(context(), b), dc(context(), c);
        Device<uint16_t> da16(context(), a16), db16(context(), b16);
        matmul(context(), args_of(s, da.data(), db.data(), dc.data()));
        for (int given = 1; given < 4; ++given) {
          Device<float> other(context(), c);
          MatmulArgs<float> x = args_of(s, (given & 1) != 0 ? nullptr : da.data(),
                                        (given & 2) != 0 ? nullptr : db.data(), other.data());
          if ((given & 1) != 0) x.a_bf16 = da16.data();
          if ((given & 2) != 0) x.b_bf16 = db16.data();
          matmul(context(), x);
          ASSERT_EQ(std::memcmp(other.read().data(), dc.read().data(), 4 * c.size()), 0)
              << m << "x" << n << "x" << inner << " " << given;
        }
      }
    }
  }
  Device<float> c(context(), 64 * 60);
  EXPECT_THROW(matmul<float>(context(), {nullptr, 64, 1, c.data(), 60, 1, c.data(), 60, 64, 60, 8}),
               UsageError);
}

// Strides of columns of a wider array, which 16-byte loads must not be used for.
TEST_F(MatmulCuda, OddStridesAreTheProduct) {
  const int64_t m = 70, n = 90, inner = 33, wide = 101;
  const Floats a = random_floats(m * wide, 4), b = random_floats(inner * wide, 5);
  const Floats c = random_floats(m * n, 6);
  Device<float> da(context(), a), db(context(), b), dc(context(), c);
  const auto with = [&](const float* x, const float* y, float* z) {
    return MatmulArgs<float>{x + 1, wide, 2, y + 3, wide, 1, z, n, m, n, inner, false};
  };
  matmul(context(), with(da.data(), db.data(), dc.data()));
  Floats unused;
  expect_product(with(a.data(), b.data(), unused.data()), c, dc.read());
}

TEST_F(MatmulCuda, ManyProductsOfOneCallAreAsEachAlone) {
  std::vector<Device<float>> as, bs, alone, together;
  std::vector<MatmulArgs<float>> list;
  for (int64_t i = 0; i < 103; ++i) {
    const int64_t inner = i * 13 % (thinned() ? 90 : 1200);
    const Shape s{i * 7 % 150, 20 + i * 11 % 130, inner, i % 2 == 0, i % 3 == 0, false};
    as.emplace_back(context(), random_floats(s.m * s.inner + 1, 1));
    bs.emplace_back(context(), random_floats(s.inner * s.n + 1, 2));
    const Floats zeros(static_cast<size_t>(s.m * (s.n + kGap) + 1));
    alone.emplace_back(context(), zeros);
    together.emplace_back(context(), zeros);
    MatmulArgs<float> x = args_of(s, as.back().data(), bs.back().data(), alone.back().data());
    matmul(context(), x);
    x.c = together.back().data();
    list.push_back(x);
  }
  matmuls<float>(context(), list);
  for (size_t i = 0; i < list.size(); ++i) ASSERT_EQ(together[i].read(), alone[i].read()) << i;
}

// In float32, and in bf16 with factors that it holds: with 70 and 130 columns none lies in quads.
TEST_F(MatmulCuda, GroupsAreTheirProducts) {
  for (const int64_t n : {70, 72, 136}) {
    const bool bf16 = n != 70;
    if (bf16) context().force("matmul", "cuda_bf16");
    groups_are_their_products(n, bf16 ? 2 * n - 12 : 130, bf16);
  }
}

}  // namespace
}  // namespace tamis
