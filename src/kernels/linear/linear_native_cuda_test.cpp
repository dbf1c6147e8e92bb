// linear_fp8, native projections and grouped products on CUDA.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/explain.h"
#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "kernels/tolerance.h"
#include "support/cuda_weight.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

Floats bf16_floats(int64_t n, uint32_t seed) {
  Floats x = random_floats(n, seed);
  for (float& v : x) v = round_to_bf16(v);
  return x;
}

// x as linear_fp8 sees it: quantised and dequantised.
Floats quantised(const Floats& x, int64_t m, int64_t cols, bool ue8m0) {
  Floats out(x.size());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t c = 0; c < cols; c += kFp8Block) {
      const int64_t n = std::min(kFp8Block, cols - c);
      uint8_t codes[kFp8Block];
      float scale;
      act_quant_row(&x[i * cols + c], n, ue8m0, codes, &scale);
      for (int64_t k = 0; k < n; ++k) out[i * cols + c + k] = e4m3_to_float(codes[k]) * scale;
    }
  }
  return out;
}

// Tensor cores may cut each of a step's 16 products and the sum so far to 2^-23 of the largest:
// twice the unit, and one cut more for every 16 columns. Then the block sums, by their scales.
double mma_tolerance(int64_t cols, double x_norm, double w_norm) {
  return 2 * dot_tolerance(cols + cols / 8 + 8, x_norm, w_norm);
}

class LinearNativeCuda : public CudaTest {
 protected:
  Floats run(const Weight& w, const Floats& x, int64_t m, bool ue8m0) {
    Device<float> dx(context(), x), dy(context(), m * w.rows);
    linear_fp8(context(), {{dx.data(), w.cols, m, w, dy.data(), w.rows}, ue8m0});
    return dy.read();
  }
  Floats project(const Weight& w, const Floats& x, int64_t m) {
    Device<float> dx(context(), x), dy(context(), m * w.rows);
    const LinearArgs a{dx.data(), w.cols, m, w, dy.data(), w.rows};
    projections(context(), {&a, 1}, true, false);
    return dy.read();
  }
  // `more`: what the sum of x[i] w[i] may lose besides.
  static void expect_close(const TestWeight& t, const Floats& x, int64_t m, const Floats& y,
                           double rounding,
                           double (*more)(const float* x, const float* w, int64_t cols) = nullptr) {
    for (int64_t r = 0; r < t.w.rows; ++r) {
      const Floats row = t.row(r);
      const double w_norm = norm2(row.data(), t.w.cols);
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0;
        const float* xi = &x[i * t.w.cols];
        for (int64_t c = 0; c < t.w.cols; ++c) sum += static_cast<double>(row[c]) * xi[c];
        const double tolerance = mma_tolerance(t.w.cols, norm2(xi, t.w.cols), w_norm) +
                                 (more == nullptr ? 0 : more(xi, row.data(), t.w.cols));
        ASSERT_NEAR(y[i * t.w.rows + r], sum, tolerance + rounding * (std::fabs(sum) + tolerance))
            << dtype_name(t.w.dtype) << " rows " << t.w.rows << " cols " << t.w.cols << " m " << m
            << " at " << i << "," << r;
      }
    }
  }
};

TEST_F(LinearNativeCuda, Fp8IsTheProductOfQuantisedRows) {
  for (const int64_t cols : {1, 100, 128, 129, 512, 640, 1100}) {
    for (const int64_t rows : {1, 16, 17, 131, 260}) {
      const TestWeight t = test_weight(DType::kF8E4M3, rows, cols, 20);
      DeviceWeight w(context(), t);
      for (const int64_t m : {0, 1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 129}) {
        if (m > 9 && (rows == 260) != (cols == 640) && rows != 17) continue;
        for (const bool ue8m0 : {false, true}) {
          if (skip_case()) continue;
          const Floats x = random_floats(m * cols, 21);
          expect_close(t, quantised(x, m, cols, ue8m0), m, run(w.w(), x, m, ue8m0), 0);
        }
      }
    }
  }
}

TEST_F(LinearNativeCuda, Bf16IsTheProductRoundedOnce) {
  for (const int64_t cols : {1, 8, 100, 128, 136, 512, 640}) {
    for (const int64_t rows : {1, 16, 17, 131, 260}) {
      const TestWeight t = test_weight(DType::kBF16, rows, cols, 20);
      DeviceWeight w(context(), t);
      for (const int64_t m : {1, 7, 8, 9, 16, 17, 33, 64, 65, 129}) {
        if (m > 9 && (rows == 260) != (cols == 640) && rows != 17) continue;
        if (skip_case()) continue;
        const Floats x = bf16_floats(m * cols, 21);
        expect_close(t, x, m, project(w.w(), x, m), kUnitBf16);
      }
    }
  }
}

// Hopper adds products of e4m3 with 14 bits (DeepSeek-V3 report, 3.3.2): in a step of 32 columns
// the products and the sum so far are each cut to 2^-13 of the largest of them. Each block of 128
// columns is then added in float32.
double e4m3_sums_lose(const float* x, const float* w, int64_t cols) {
  constexpr int64_t kStep = 32;
  double lost = 0, sum = 0;
  for (int64_t c = 0; c < cols; c += kStep) {
    if (c % kFp8Block == 0) sum = 0;
    double largest = std::fabs(sum);
    for (int64_t k = c; k < std::min(cols, c + kStep); ++k) {
      const double product = static_cast<double>(x[k]) * w[k];
      largest = std::max(largest, std::fabs(product));
      sum += product;
    }
    lost += (kStep + 1) * std::max(largest, std::fabs(sum)) / (1 << 13);
  }
  return lost;
}

class LinearCublasltCuda : public LinearNativeCuda {
 protected:
  void products(DType dtype, int64_t rows, int64_t cols, int64_t m, bool taken) {
    const bool fp8 = dtype == DType::kF8E4M3;
    const TestWeight t = test_weight(dtype, rows, cols, 20);
    DeviceWeight w(context(), t);
    const Floats x = fp8 ? random_floats(m * cols, 21) : bf16_floats(m * cols, 21);
    for (const bool ue8m0 : {false, true}) {
      expect_close(t, fp8 ? quantised(x, m, cols, ue8m0) : x, m,
                   fp8 ? run(w.w(), x, m, ue8m0) : project(w.w(), x, m), fp8 ? 0 : kUnitBf16,
                   fp8 && taken ? e4m3_sums_lose : nullptr);
    }
    const std::vector<std::string> ran = explain(context());
    EXPECT_EQ(std::count(ran.begin(), ran.end(), "linear_tiles: cuda_cublaslt"), taken ? 1 : 0)
        << rows << " " << cols << " " << m;
  }
  // What it does not take comes first: explain() never forgets.
  void all_products(DType dtype, bool takes) {
    context().force("linear_tiles", "cuda_cublaslt");
    products(dtype, 256, 512, 16, false);
    products(dtype, 131, 100, 65, false);
    products(dtype, 256, 512, 17, takes);
    products(dtype, 272, 1536, 129, takes);
    products(dtype, 512, 512, 700, takes);
  }
};

TEST_F(LinearCublasltCuda, TakesBf16WhenAsked) { all_products(DType::kBF16, true); }

TEST_F(LinearCublasltCuda, TakesFp8OnHopperWhenAsked) {
  all_products(DType::kF8E4M3, context().device()->info().sm == 90);
}

TEST_F(LinearNativeCuda, OtherFormatsAreExactAndRounded) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8, DType::kI4}) {
    const TestWeight t = test_weight(dtype, 40, 96, 22);
    DeviceWeight w(context(), t);
    const Floats x = bf16_floats(9 * 96, 23), y = project(w.w(), x, 9);
    expect_close(t, x, 9, y, kUnitBf16);
    for (const float v : y) ASSERT_EQ(v, round_to_bf16(v));
  }
}

TEST_F(LinearNativeCuda, SlicesMisalignedRowsAndNanCodes) {
  for (const int64_t shift : {0, 1, 8}) {
    TestWeight t = test_weight(DType::kF8E4M3, 300, 512, 3, shift, shift);
    t.data[static_cast<size_t>(shift + 150 * t.w.row_bytes + 300)] = std::byte{0x7F};
    t.data[static_cast<size_t>(shift + 151 * t.w.row_bytes + 383)] = std::byte{0xFF};
    t.w = t.w.row_slice(132, 100).col_slice(128, 256);
    DeviceWeight w(context(), t);
    for (const int64_t m : {1, 20, 70}) {
      const Floats x = random_floats(m * 256, 4), y = run(w.w(), x, m, false);
      const Floats q = quantised(x, m, 256, false);
      for (int64_t i = 0; i < m * 100; ++i) {
        const int64_t r = i % 100;
        ASSERT_EQ(std::isnan(y[i]), r == 18 || r == 19) << shift << " " << i;
        if (r == 18 || r == 19) continue;
        const Floats row = t.row(r);
        const float* xi = &q[i / 100 * 256];
        double sum = 0;
        for (int64_t c = 0; c < 256; ++c) sum += static_cast<double>(row[c]) * xi[c];
        ASSERT_NEAR(y[i], sum, mma_tolerance(256, norm2(xi, 256), norm2(row.data(), 256)));
      }
    }
  }
}

// Each kernel for many rows of x that the GPU has; without a name the one that is chosen.
class LinearTilesCuda : public LinearNativeCuda, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    LinearNativeCuda::SetUp();
    const std::string name = GetParam();
    const bool hopper = context().device()->info().sm == 90;
    if (!name.empty()) context().force("linear_tiles", hopper ? name : "cuda");
  }
  Floats product(const Weight& w, const Floats& x, int64_t m) {
    return w.dtype == DType::kBF16 ? project(w, x, m) : run(w, x, m, false);
  }
};

INSTANTIATE_TEST_SUITE_P(All, LinearTilesCuda, testing::Values("", "cuda", "cuda_sm90"),
                         [](const auto& i) {
                           return std::string(*i.param == 0 ? "chosen" : i.param);
                         });

// One row alone, and in every batch size that reaches another kernel; twice.
TEST_P(LinearTilesCuda, BitsDoNotDependOnTheBatch) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t cols : {300, 1024, 9216}) {
      for (const int64_t rows : {40, 300, 4096}) {
        if (rows != 40 && cols != 1024) continue;
        if ((rows == 4096 || cols == 9216) && thinned()) continue;
        if (rows == 4096 && *GetParam() != 0) continue;  // the chosen one is one of the others
        const TestWeight t = test_weight(dtype, rows, cols, 23);
        DeviceWeight w(context(), t);
        const Floats x = bf16_floats(600 * cols, 24);
        Floats alone;
        for (const int64_t i : {0, 1, 5}) {
          const Floats y = product(w.w(), Floats(&x[i * cols], &x[i * cols] + cols), 1);
          alone.insert(alone.end(), y.begin(), y.end());
        }
        for (const int64_t m : {6, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 192, 193, 600}) {
          if (skip_case()) continue;
          const Floats y = product(w.w(), x, m);
          ASSERT_EQ(std::memcmp(y.data(), product(w.w(), x, m).data(), y.size() * sizeof(float)),
                    0);
          int k = 0;
          for (const int64_t i : {0, 1, 5}) {
            ASSERT_EQ(std::memcmp(&y[i * rows], &alone[k++ * rows],
                                  static_cast<size_t>(rows) * sizeof(float)),
                      0)
                << dtype_name(dtype) << " cols " << cols << " m " << m << " row " << i;
          }
        }
      }
    }
  }
}

// Every row of a large batch has the bits of the kernel for few rows, whatever the values are:
// subnormal numbers, cancelling ones, sums beyond the largest float, infinity and NaN.
TEST_P(LinearTilesCuda, HostileValuesHaveTheBitsOfFewRows) {
  constexpr int64_t rows = 333, cols = 520, m = 450;
  const auto hostile = [](int64_t i, uint32_t seed) {
    const auto bits = static_cast<uint32_t>((i * 2654435761u + seed) * 2246822519u);
    const float tiny = std::ldexp(1.0f + static_cast<float>(bits % 128) / 128, -130);
    const float wide = std::ldexp(1.0f, static_cast<int>(bits / 128 % 120) - 60);
    const float list[] = {tiny, wide, -wide, 0.0f, 3e38f, 1.0f, -1.0f, -tiny};
    return list[bits >> 29];
  };
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    TestWeight t = test_weight(dtype, rows, cols, 25);
    Floats x(m * cols);
    for (int64_t i = 0; i < m * cols; ++i) x[i] = round_to_bf16(hostile(i, 1));
    x[100 * cols + 7] = std::numeric_limits<float>::infinity();
    x[200 * cols + 9] = std::numeric_limits<float>::quiet_NaN();
    if (dtype == DType::kBF16) {
      auto* values = reinterpret_cast<uint16_t*>(t.data.data());
      for (int64_t i = 0; i < rows * cols; ++i) values[i] = float_to_bf16(hostile(i, 2));
    }
    DeviceWeight w(context(), t);
    const Floats all = product(w.w(), x, m);
    for (int64_t i = 0; i < m; i += 9) {
      if (skip_case()) continue;
      const Floats few = product(w.w(), Floats(&x[i * cols], &x[i * cols] + 9 * cols), 9);
      for (int64_t k = 0; k < 9 * rows; ++k) {
        const float a = all[i * rows + k], b = few[k];
        ASSERT_TRUE(std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)))
            << dtype_name(dtype) << " row " << i + k / rows << " of x, " << k % rows
            << " of W: " << a << " and " << b;
      }
    }
  }
}

// Products of one call with shapes of their own, some with the same x; y has room around its rows.
TEST_P(LinearTilesCuda, ProductsOfOneCallAreTheirOwn) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    struct Shape {
      int64_t rows, cols, m;
    };
    const Shape shapes[] = {{130, 256, 200}, {700, 256, 200}, {65, 1000, 17}, {257, 136, 1}};
    std::vector<TestWeight> host;
    std::vector<DeviceWeight> weights;
    std::vector<Device<float>> xs, ys, ones;
    host.reserve(4), weights.reserve(4), xs.reserve(4), ys.reserve(4), ones.reserve(4);
    std::vector<LinearArgs> list;
    for (const Shape& s : shapes) {
      const size_t i = host.size();
      host.push_back(test_weight(dtype, s.rows, s.cols, 26));
      weights.emplace_back(context(), host.back());
      xs.emplace_back(context(), bf16_floats(s.m * s.cols, 27));
      ys.emplace_back(context(), s.m * (s.rows + 3));
      ones.emplace_back(context(), s.m * (s.rows + 3));
      list.push_back({xs[i == 1 ? 0 : i].data(), s.cols, s.m, weights.back().w(), ys.back().data(),
                      s.rows + 3});
    }
    projections(context(), list, true, false);
    for (size_t i = 0; i < list.size(); ++i) {
      LinearArgs one = list[i];
      one.y = ones[i].data();
      projections(context(), {&one, 1}, true, false);
      const Floats got = ys[i].read(), want = ones[i].read();
      for (size_t k = 0; k < got.size(); ++k) {
        const bool inside = static_cast<int64_t>(k) % (shapes[i].rows + 3) < shapes[i].rows;
        ASSERT_EQ(std::isnan(got[k]), !inside) << i << " at " << k;
        ASSERT_TRUE(!inside || got[k] == want[k]) << dtype_name(dtype) << " " << i << " at " << k;
      }
    }
  }
}

// Groups of no, one and many rows: each group has the bits of its own product.
TEST_P(LinearTilesCuda, GroupsHaveTheBitsOfTheirOwnProducts) {
  const std::vector<int64_t> offsets = {0, 0, 1, 1, 130, 139, 139, 403};
  constexpr int64_t groups = 7, all = 410, cols = 384, rows = 200;
  for (const DType dtype : kWeightFormats) {
    for (const bool native : {false, true}) {
      if (skip_case()) continue;
      std::vector<TestWeight> host;
      std::vector<DeviceWeight> device;
      std::vector<Weight> weights;
      std::vector<std::byte> bytes(sizeof(Weight) * groups);
      host.reserve(groups);
      device.reserve(groups);
      for (int64_t g = 0; g < groups; ++g) {
        host.push_back(test_weight(dtype, rows, cols, static_cast<uint32_t>(g)));
        device.emplace_back(context(), host.back());
        weights.push_back(device.back().w());
      }
      std::memcpy(bytes.data(), weights.data(), bytes.size());
      Device<std::byte> d_weights(context(), bytes);
      Device<int64_t> d_offsets(context(), offsets);
      const Floats x = bf16_floats(all * cols, 30);
      Device<float> dx(context(), x), dy(context(), all * rows), one(context(), all * rows);
      // A second product with the weights of other groups, and products beside them of few rows and
      // of many: whatever shares a launch has the bits it has alone.
      std::rotate(weights.begin(), weights.begin() + 1, weights.end());
      const std::vector<Weight> others = weights;
      std::rotate(weights.begin(), weights.end() - 1, weights.end());
      std::memcpy(bytes.data(), others.data(), bytes.size());
      Device<std::byte> d_others(context(), bytes);
      Device<float> dz(context(), all * rows), other(context(), all * rows);
      Device<float> beside(context(), 3 * rows), beside_alone(context(), 3 * rows);
      const auto* on_device = reinterpret_cast<const Weight*>(d_weights.data());
      const auto* others_on_device = reinterpret_cast<const Weight*>(d_others.data());
      const GroupedProduct products[] = {
          {dx.data(), cols, weights, on_device, dy.data(), rows},
          {dx.data(), cols, others, others_on_device, dz.data(), rows}};
      const LinearArgs few{dx.data() + cols, cols, 3, weights[2], beside.data(), rows};
      GroupedLinearArgs a;
      a.products = products;
      a.beside = {&few, 1};
      a.offsets = d_offsets.data();
      a.groups = groups;
      a.rows = offsets.back();
      a.native = native;
      grouped_linear(context(), a);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = offsets[g], m = offsets[g + 1] - first;
        const LinearArgs alone{dx.data() + first * cols,  cols, m, weights[g],
                               one.data() + first * rows, rows};
        projections(context(), {&alone, 1}, native, false);
        LinearArgs with_other = alone;
        with_other.w = others[g];
        with_other.y = other.data() + first * rows;
        projections(context(), {&with_other, 1}, native, false);
      }
      LinearArgs few_alone = few;
      few_alone.y = beside_alone.data();
      projections(context(), {&few_alone, 1}, native, false);
      ASSERT_EQ(beside.read(), beside_alone.read());
      const Floats second = dz.read(), second_alone = other.read();
      ASSERT_EQ(std::memcmp(second.data(), second_alone.data(),
                            static_cast<size_t>(offsets.back() * rows) * sizeof(float)),
                0);
      const Floats got = dy.read(), want = one.read();
      const auto bytes_of_all = static_cast<size_t>(offsets.back() * rows) * sizeof(float);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), bytes_of_all), 0)
          << dtype_name(dtype) << native;
      for (int64_t i = 0; i < offsets.back() * rows; ++i) ASSERT_FALSE(std::isnan(got[i]));
      for (int64_t i = 404 * rows; i < all * rows; ++i) {
        ASSERT_TRUE(std::isnan(got[i])) << "wrote outside the groups";
      }
    }
  }
}

// More groups than a warp has lanes, most of them without rows.
TEST_P(LinearTilesCuda, ManyGroupsFindTheirRows) {
  constexpr int64_t groups = 75, cols = 256, rows = 140;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const TestWeight all = test_weight(dtype, groups * 128 + rows, cols, 31);
    DeviceWeight device(context(), all);
    std::vector<int64_t> offsets{0};
    std::vector<Weight> weights;
    std::vector<std::byte> bytes(sizeof(Weight) * groups);
    for (int64_t g = 0; g < groups; ++g) {
      weights.push_back(device.w().row_slice(g * 128, rows));
      offsets.push_back(offsets.back() + (g % 11 == 4 ? 395 + g : g % 3 == 0 ? g % 8 : 0));
    }
    std::memcpy(bytes.data(), weights.data(), bytes.size());
    Device<std::byte> d_weights(context(), bytes);
    Device<int64_t> d_offsets(context(), offsets);
    const int64_t m = offsets.back();
    ASSERT_GT(m, 32 * groups);
    const Floats x = bf16_floats(m * cols, 32);
    Device<float> dx(context(), x), dy(context(), m * rows), one(context(), m * rows);
    const GroupedProduct product{dx.data(), cols,
                                 weights,   reinterpret_cast<const Weight*>(d_weights.data()),
                                 dy.data(), rows};
    GroupedLinearArgs a;
    a.products = {&product, 1};
    a.offsets = d_offsets.data();
    a.groups = groups;
    a.rows = m;
    a.native = true;
    grouped_linear(context(), a);
    for (int64_t g = 0; g < groups; ++g) {
      const LinearArgs alone{dx.data() + offsets[g] * cols,  cols,
                             offsets[g + 1] - offsets[g],    weights[g],
                             one.data() + offsets[g] * rows, rows};
      projections(context(), {&alone, 1}, true, false);
    }
    const Floats got = dy.read(), want = one.read();
    for (int64_t i = 0; i < m * rows; ++i) ASSERT_EQ(got[i], want[i]) << dtype_name(dtype) << i;
  }
}

}  // namespace
}  // namespace tamis
