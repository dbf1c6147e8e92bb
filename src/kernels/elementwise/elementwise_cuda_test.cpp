#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/elementwise/elementwise.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

using ElementwiseCuda = CudaTest;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_F(ElementwiseCuda, FillsAndNothingElse) {
  for (const int64_t n : {0, 1, 255, 256, 257, 100000}) {
    Device<float> x(context(), n + 3);
    fill(context(), {x.data(), n, 2.5F});
    const std::vector<float> got = x.read();
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(got[i], 2.5F) << i;
    for (int64_t i = n; i < n + 3; ++i) ASSERT_TRUE(std::isnan(got[i])) << i;
  }
}

TEST_F(ElementwiseCuda, RoundsAsTheReferenceAndOnlyItsColumns) {
  for (const int64_t width : {0, 1, 64, 300}) {
    for (const int64_t rows : {0, 1, 7, 500}) {
      const int64_t stride = width + 5;
      std::vector<float> x = random_floats(rows * stride, 1);
      if (width > 2 && rows > 0) {
        x[0] = -0.0F;
        x[1] = kInf;
        x[2] = std::numeric_limits<float>::denorm_min();
      }
      Device<float> d(context(), x);
      round_rows(context(), {d.data(), rows, width, stride});
      round_rows(reference(), {x.data(), rows, width, stride});
      ASSERT_TRUE(same_bits(d.read(), x)) << rows << " x " << width;
    }
  }
}

TEST_F(ElementwiseCuda, GathersRows) {
  const std::vector<float> x = random_floats(int64_t{9} * 70, 2);
  const std::vector<int32_t> row = {8, 0, 0, 3, 7};
  for (const int64_t rows : {0, 1, 5}) {
    std::vector<float> want(static_cast<size_t>(rows * 70));
    gather_rows(reference(), {x.data(), row.data(), rows, 70, want.data()});
    Device<float> dx(context(), x), y(context(), rows * 70);
    Device<int32_t> dr(context(), row);
    gather_rows(context(), {dx.data(), dr.data(), rows, 70, y.data()});
    ASSERT_TRUE(same_bits(y.read(), want)) << rows;
  }
}

// A bad value at any place marks its sequence, and an earlier mark stays.
TEST_F(ElementwiseCuda, FindsWhatIsNotFinite) {
  const std::vector<int32_t> sequence = {0, 0, 1, 2, 2, 3}, token = {5, 3, 0};
  for (const int64_t width : {1, 31, 257, 1000}) {
    for (const float bad : {kNan, kInf, -kInf}) {
      for (const int64_t at : {int64_t{0}, width / 2, width - 1}) {
        std::vector<float> x = random_floats(6 * width, 3);
        x[static_cast<size_t>(2 * width + at)] = bad;
        x[static_cast<size_t>(4 * width + at)] = bad;
        Device<float> dx(context(), x);
        Device<int32_t> ds(context(), sequence), dt(context(), token);
        Device<int32_t> failed(context(), std::vector<int32_t>{-1, -1, 4, -1});
        check_finite(context(), {dx.data(), 6, width, nullptr, ds.data(), 7, failed.data()});
        EXPECT_EQ(failed.read(), (std::vector<int32_t>{-1, 7, 4, -1}));
        // Row 2 is token 0, of sequence 0.
        Device<int32_t> rows(context(), std::vector<int32_t>{-1, -1, -1, -1});
        check_finite(context(), {dx.data(), 3, width, dt.data(), ds.data(), 5, rows.data()});
        EXPECT_EQ(rows.read(), (std::vector<int32_t>{5, -1, -1, -1}));
      }
    }
  }
}

TEST_F(ElementwiseCuda, FindsFlags) {
  for (const int64_t n : {1, 255, 256, 600}) {
    std::vector<uint8_t> flags(static_cast<size_t>(n));
    std::vector<int32_t> sequence(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) sequence[i] = static_cast<int32_t>(i % 2);
    flags[static_cast<size_t>(n - 1)] = 1;
    Device<uint8_t> df(context(), flags);
    Device<int32_t> ds(context(), sequence), failed(context(), std::vector<int32_t>{-1, -1});
    check_flags(context(), {df.data(), n, ds.data(), 3, failed.data()});
    std::vector<int32_t> want = {-1, -1};
    want[static_cast<size_t>((n - 1) % 2)] = 3;
    EXPECT_EQ(failed.read(), want) << n;
  }
}

TEST_F(ElementwiseCuda, PreparesIndexQueriesAsTheReference) {
  for (const int64_t dim : {1, 32, 128, 200, 300}) {
    for (const bool native : {false, true}) {
      for (const bool ue8m0 : {false, true}) {
        const int64_t rows = 33;
        std::vector<float> q = random_floats(rows * dim, 4), w = random_floats(rows, 5);
        for (int64_t i = 0; i < dim; ++i) q[static_cast<size_t>(i)] = 0;  // the smallest scale
        q[static_cast<size_t>(dim)] = 1e6F;
        Device<float> dq(context(), q), dw(context(), w);
        index_query(context(), {dq.data(), dw.data(), rows, dim, 0.35F, 0.09F, native, ue8m0});
        index_query(reference(), {q.data(), w.data(), rows, dim, 0.35F, 0.09F, native, ue8m0});
        ASSERT_TRUE(same_bits(dq.read(), q)) << dim << native << ue8m0;
        ASSERT_TRUE(same_bits(dw.read(), w)) << dim << native << ue8m0;
      }
    }
  }
}

TEST_F(ElementwiseCuda, SelectsWindowsAsTheReference) {
  const std::vector<int32_t> position = {0, 1, 15, 16, 17, 5000};
  for (const int64_t k : {1, 16, 300}) {
    for (const int64_t n : {0, 1, 6}) {
      std::vector<int32_t> want(static_cast<size_t>(n * k));
      select_window(reference(), {position.data(), n, k, want.data()});
      Device<int32_t> p(context(), position), got(context(), n * k);
      select_window(context(), {p.data(), n, k, got.data()});
      ASSERT_EQ(got.read(), want) << n << " " << k;
    }
  }
}

TEST_F(ElementwiseCuda, EarlierMarksStay) {
  std::vector<float> x = random_floats(int64_t{6} * 70, 6), y = random_floats(int64_t{3} * 900, 7);
  x[2 * 70 + 69] = kNan;
  y[899] = kInf;
  std::vector<uint8_t> flags(6);
  flags[5] = 1;
  Device<float> dx(context(), x), dy(context(), y);
  Device<uint8_t> df(context(), flags);
  Device<int32_t> sequence(context(), std::vector<int32_t>{0, 0, 1, 2, 3, 4});
  Device<int32_t> token(context(), std::vector<int32_t>{4, 0, 1});
  Device<int32_t> failed(context(), std::vector<int32_t>{-1, -1, -1, -1, -1});
  check_finite(context(), {dx.data(), 6, 70, nullptr, sequence.data(), 7, failed.data()});
  check_finite(context(), {dy.data(), 3, 900, token.data(), sequence.data(), 8, failed.data()});
  check_flags(context(), {df.data(), 6, sequence.data(), 9, failed.data()});
  EXPECT_EQ(failed.read(), (std::vector<int32_t>{-1, 7, -1, 8, 9}));
}

}  // namespace
}  // namespace tamis
