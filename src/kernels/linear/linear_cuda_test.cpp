#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/linear/linear.h"
#include "kernels/per_head_linear/per_head_linear.h"
#include "kernels/tolerance.h"
#include "support/cuda_weight.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

class LinearCuda : public CudaTest {
 protected:
  // y of a product whose rows of x lie `gap` floats apart; y's rows too, and what lies between must
  // stay as it was.
  Floats product(const Weight& w, const Floats& x, int64_t m, int64_t gap = 0) {
    const int64_t xs = w.cols + gap, ys = w.rows + gap;
    Device<float> dx(context(), x), dy(context(), m * ys);
    linear(context(), {dx.data(), xs, m, w, dy.data(), ys});
    const Floats all = dy.read();
    Floats y;
    for (int64_t i = 0; i < m; ++i) {
      y.insert(y.end(), &all[i * ys], &all[i * ys] + w.rows);
      for (int64_t k = w.rows; k < ys; ++k) EXPECT_TRUE(std::isnan(all[i * ys + k]));
    }
    return y;
  }

  // Against sums in double, within the bound of a float32 sum.
  static void expect_close(const TestWeight& t, const Floats& x, int64_t xs, int64_t m,
                           const Floats& y) {
    for (int64_t r = 0; r < t.w.rows; ++r) {
      const Floats row = t.row(r);
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0;
        for (int64_t c = 0; c < t.w.cols; ++c) sum += static_cast<double>(row[c]) * x[i * xs + c];
        const double tolerance =
            dot_tolerance(t.w.cols, norm2(&x[i * xs], t.w.cols), norm2(row.data(), t.w.cols));
        ASSERT_NEAR(y[i * t.w.rows + r], sum, tolerance)
            << dtype_name(t.w.dtype) << " rows " << t.w.rows << " cols " << t.w.cols << " m " << m
            << " at " << i << "," << r;
      }
    }
  }
};

TEST_F(LinearCuda, IsTheProductAtEveryEdge) {
  for (const DType dtype : kWeightFormats) {
    for (const int64_t cols : {0, 1, 3, 7, 8, 31, 33, 127, 128, 129, 257, 512, 1100}) {
      for (const int64_t rows : {1, 4, 17, 65, 130}) {
        if (rows > 20 && cols > 300) continue;
        const TestWeight t = test_weight(dtype, rows, cols, 1);
        DeviceWeight w(context(), t);
        for (const int64_t m : {0, 1, 2, 5, 8, 9, 65, 129}) {
          if (m > 9 && (cols % 32 != 1 || rows % 2 == 0)) continue;
          if (skip_case()) continue;
          const Floats x = random_floats(m * cols, 2);
          expect_close(t, x, cols, m, product(w.w(), x, m));
        }
      }
    }
  }
}

TEST_F(LinearCuda, AlignedRowsOfTheModelsShapes) {
  for (const DType dtype : kWeightFormats) {
    const TestWeight t = test_weight(dtype, 48, 2048, 1);
    DeviceWeight w(context(), t);
    for (const int64_t m : {1, 4, 8, 65}) {
      if (skip_case()) continue;
      const Floats x = random_floats(m * 2048, 2);
      expect_close(t, x, 2048, m, product(w.w(), x, m));
    }
  }
}

TEST_F(LinearCuda, GapsMisalignmentAndSlices) {
  for (const DType dtype : kWeightFormats) {
    for (const int64_t shift : {0, 4, 8}) {
      TestWeight t = test_weight(dtype, 300, 352, 3, shift, shift + 4);
      t.w = t.w.row_slice(130, 70).col_slice(32, 288);
      DeviceWeight w(context(), t);
      for (const int64_t m : {1, 7, 70}) {
        if (skip_case()) continue;
        const Floats x = random_floats(m * (288 + 5), 4);
        expect_close(t, x, 288 + 5, m, product(w.w(), x, m, 5));
      }
    }
  }
}

TEST_F(LinearCuda, BadNumbersStayInTheirRows) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  TestWeight t = test_weight(DType::kF32, 6, 70, 5);
  for (int64_t r = 0; r < 6; ++r) {
    for (int64_t c = 0; c < 70; ++c) {
      const float one = r == 4 && c == 66 ? kInf : 1.0f;
      std::memcpy(t.data.data() + r * t.w.row_bytes + c * 4, &one, 4);
    }
  }
  DeviceWeight w(context(), t);
  for (const int64_t m : {3, 8, 90}) {
    Floats x(static_cast<size_t>(m * 70), 1.0f);
    x[70 + 69] = std::nanf("");
    x[140 + 2] = kInf;
    const Floats y = product(w.w(), x, m);
    for (int64_t i = 0; i < m * 6; ++i) {
      if (i / 6 == 1) {
        ASSERT_TRUE(std::isnan(y[i]));
      } else {
        ASSERT_EQ(std::isinf(y[i]), i / 6 == 2 || i % 6 == 4) << i;
      }
    }
  }
}

// Alone, in batches that reach every kernel, among other products, and again.
TEST_F(LinearCuda, BitsDoNotDependOnTheBatch) {
  for (const DType dtype : kWeightFormats) {
    for (const int64_t cols : {555, 1024}) {
      const TestWeight t = test_weight(dtype, 150, cols, 13), u = test_weight(dtype, 40, 64, 14);
      DeviceWeight w(context(), t), other(context(), u);
      const Floats x = random_floats(200 * cols, 15);
      Floats alone;
      for (int64_t i = 0; i < 200; i += i < 8 ? 1 : 24) {
        const Floats xi(&x[i * cols], &x[i * cols] + cols);
        const Floats yi = product(w.w(), xi, 1);
        alone.resize(static_cast<size_t>((i + 1) * 150));
        std::copy(yi.begin(), yi.end(), alone.end() - 150);
      }
      for (const int64_t m : {2, 4, 5, 8, 9, 64, 65, 200}) {
        if (skip_case()) continue;
        Device<float> dx(context(), x), y1(context(), 30 * 40), y2(context(), m * 150);
        const LinearArgs both[] = {{dx.data(), 64, 30, other.w(), y1.data(), 40},
                                   {dx.data(), cols, m, w.w(), y2.data(), 150}};
        for (int repeat = 0; repeat < 2; ++repeat) {
          linears(context(), both);
          const Floats y = y2.read();
          for (int64_t i = 0; i < m; i += i < 8 ? 1 : 24) {
            ASSERT_EQ(std::memcmp(&y[i * 150], &alone[i * 150], 150 * sizeof(float)), 0)
                << dtype_name(dtype) << " m " << m << " row " << i;
          }
        }
      }
    }
  }
}

TEST_F(LinearCuda, MoreProductsThanOneLaunchTakes) {
  const TestWeight t = test_weight(DType::kBF16, 5, 64, 16), v = test_weight(DType::kI8, 5, 64, 17);
  DeviceWeight w(context(), t), u(context(), v);
  const Floats x = random_floats(64, 18);
  Device<float> dx(context(), x), y(context(), 30 * 5);
  std::vector<LinearArgs> args;
  for (int64_t i = 0; i < 30; ++i) {
    args.push_back({dx.data(), 64, 1, i % 7 == 0 ? u.w() : w.w(), y.data() + i * 5, 5});
  }
  linears(context(), args);
  const Floats got = y.read();
  for (int64_t i = 0; i < 30; ++i) {
    expect_close(i % 7 == 0 ? v : t, x, 64, 1, Floats(&got[i * 5], &got[i * 5] + 5));
  }
}

class PerHeadCuda : public CudaTest {};

TEST_F(PerHeadCuda, IsTheReferenceInBothDirections) {
  for (const DType dtype : kWeightFormats) {
    for (const int64_t cols : {64, 130, 512}) {
      for (const bool transposed : {false, true}) {
        if (skip_case()) continue;
        constexpr int64_t heads = 3;
        const int64_t head_rows = 160, offset = 32, rows = 128;
        const TestWeight t = test_weight(dtype, heads * head_rows, cols, 20);
        DeviceWeight w(context(), t);
        const int64_t in = transposed ? rows : cols, out = transposed ? cols : rows;
        // The norm of all of a head's matrix bounds that of each of its rows and columns.
        double w_norm[heads] = {};
        for (int64_t r = 0; r < heads * rows; ++r) {
          const Floats row = t.row(r / rows * head_rows + offset + r % rows);
          w_norm[r / rows] = std::hypot(w_norm[r / rows], norm2(row.data(), cols));
        }
        Floats alone;
        for (const int64_t tokens : {0, 1, 7, 8, 9, 70}) {
          const int64_t x_token = heads * (in + 1), y_token = heads * (out + 2);
          const Floats x = random_floats(70 * x_token, 21);
          PerHeadLinearArgs a{x.data(), x_token,   in + 1, tokens, heads,
                              t.w,      head_rows, offset, rows,   transposed};
          Floats want(static_cast<size_t>(tokens * y_token), std::nanf(""));
          a.y = want.data();
          a.y_token_stride = y_token;
          a.y_head_stride = out + 2;
          per_head_linear(reference(), a);
          Device<float> dx(context(), x), dy(context(), tokens * y_token);
          a.x = dx.data();
          a.w = w.w();
          a.y = dy.data();
          per_head_linear(context(), a);
          const Floats got = dy.read();
          if (tokens == 1) alone = got;
          for (int64_t i = 0; i < tokens * y_token; ++i) {
            ASSERT_EQ(std::isnan(got[i]), std::isnan(want[i])) << i;
            if (std::isnan(want[i])) continue;
            const int64_t token = i / y_token, h = i % y_token / (out + 2);
            const double x_norm = norm2(&x[token * x_token + h * (in + 1)], in);
            ASSERT_NEAR(got[i], want[i], dot_tolerance(in, x_norm, w_norm[h])) << i;
          }
          if (tokens >= 1) {
            ASSERT_EQ(std::memcmp(got.data(), alone.data(), alone.size() * sizeof(float)), 0);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis
