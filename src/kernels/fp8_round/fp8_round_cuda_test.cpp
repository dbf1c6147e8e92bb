// The CUDA version has the bits of the reference: from and to float and bf16, ragged shapes, rows
// that lie apart, empty groups, values of every size.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/fp8_round/fp8_round.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

class Fp8RoundCuda : public CudaTest {
 protected:
  struct Shape {
    int64_t rows, width, gap = 0;
    std::vector<int64_t> offsets = {};  // kDown, kBoth
    int64_t matrices = 1;               // kSquare
  };

  // Blocks of very different sizes, some of zeros.
  static std::vector<float> values(int64_t n, uint32_t seed, bool hostile) {
    std::vector<float> x = random_floats(n, seed);
    std::mt19937 generator(seed);
    for (size_t i = 0; i < x.size(); ++i) {
      const int exponent = static_cast<int>(i / 50 * 2654435761U % 240) - 130;
      x[i] = i / 50 % 7 == 3 ? 0 : std::ldexp(x[i], exponent);
      if (!hostile || generator() % 97 != 0) continue;
      constexpr float kInf = std::numeric_limits<float>::infinity();
      const float bad[] = {kInf, -kInf, std::nanf(""), 3e38F, -3e38F, 1e-45F};
      x[i] = bad[generator() % 6];
    }
    return x;
  }

  template <typename V>
  static void expect_same(const std::vector<V>& got, const std::vector<V>& want,
                          float (*as_float)(V)) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::isnan(as_float(want[i]))) {
        ASSERT_TRUE(std::isnan(as_float(got[i]))) << i;
      } else {
        ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(V)), 0)
            << i << ": " << as_float(got[i]) << " " << as_float(want[i]);
      }
    }
  }
  static float as_is(float x) { return x; }

  void expect_is_the_reference(Fp8Blocks blocks, const Shape& s, bool from, bool to, bool hostile) {
    const int64_t stride = s.width + s.gap, matrix = s.rows * stride + 3;
    const std::vector<float> x = values(s.matrices * matrix, 5, hostile);
    std::vector<uint16_t> x16;
    for (const float v : x) x16.push_back(float_to_bf16(v));
    const int64_t n = s.matrices * s.rows * s.width;
    const bool both = blocks == Fp8Blocks::kBoth;
    std::vector<float> want(static_cast<size_t>(n), 7), down = want;
    std::vector<uint16_t> want16(static_cast<size_t>(n), 7), down16 = want16;
    Fp8RoundArgs<float> a{blocks, x.data(), from ? x16.data() : nullptr, stride, s.rows, s.width};
    if (!s.offsets.empty()) {
      a.offsets = s.offsets.data();
      a.groups = static_cast<int64_t>(s.offsets.size()) - 1;
    }
    if (blocks == Fp8Blocks::kSquare) {
      a.groups = s.matrices;
      a.group_stride = matrix;
    }
    a.y = to ? nullptr : want.data();
    a.y_bf16 = to ? want16.data() : nullptr;
    a.down = both && !to ? down.data() : nullptr;
    a.down_bf16 = both && to ? down16.data() : nullptr;
    fp8_round<float>(reference(), a);
    Device<float> gx(context(), x), gy(context(), n);
    Device<float> gdown(context(), n);
    Device<uint16_t> gx16(context(), x16), gy16(context(), n), gdown16(context(), n);
    Device<int64_t> offsets(context(), s.offsets.empty() ? std::vector<int64_t>{0} : s.offsets);
    a.x = gx.data();
    a.x_bf16 = from ? gx16.data() : nullptr;
    if (!s.offsets.empty()) a.offsets = offsets.data();
    a.y = to ? nullptr : gy.data();
    a.y_bf16 = to ? gy16.data() : nullptr;
    a.down = both && !to ? gdown.data() : nullptr;
    a.down_bf16 = both && to ? gdown16.data() : nullptr;
    fp8_round<float>(context(), a);
    if (to) {
      expect_same<uint16_t>(gy16.read(), want16, bf16_to_float);
      if (both) expect_same<uint16_t>(gdown16.read(), down16, bf16_to_float);
    } else {
      expect_same<float>(gy.read(), want, as_is);
      if (both) expect_same<float>(gdown.read(), down, as_is);
    }
  }

  void expect_all(Fp8Blocks blocks, const Shape& s) {
    for (const bool from : {false, true}) {
      if (from && blocks == Fp8Blocks::kSquare) continue;
      for (const bool to : {false, true}) {
        for (const bool hostile : {false, true}) {
          if (skip_case()) continue;
          ASSERT_NO_FATAL_FAILURE(expect_is_the_reference(blocks, s, from, to, hostile))
              << s.rows << " " << s.width << " " << s.gap << " " << from << to << hostile;
        }
      }
    }
  }
};

TEST_F(Fp8RoundCuda, AcrossRows) {
  for (const Shape& s :
       {Shape{1, 1}, {5, 127, 1}, {300, 256}, {33, 132, 4}, {7, 1000, 3}, {0, 5}}) {
    ASSERT_NO_FATAL_FAILURE(expect_all(Fp8Blocks::kAcross, s));
  }
}

TEST_F(Fp8RoundCuda, DownColumnsOfGroupsAndBoth) {
  std::vector<int64_t> many = {0};
  for (int64_t g = 0; g < 70; ++g) many.push_back(many.back() + g % 9 * 31);
  for (const Shape& s : {Shape{1, 1},
                         {129, 63, 1},
                         {300, 256},
                         {256, 68, 4},
                         {300, 64, 0, {0, 0, 130, 131, 300}},
                         {many.back(), 20, 0, many},
                         {5, 7, 3, {0, 5, 5}}}) {
    ASSERT_NO_FATAL_FAILURE(expect_all(Fp8Blocks::kDown, s));
    ASSERT_NO_FATAL_FAILURE(expect_all(Fp8Blocks::kBoth, s));
  }
}

TEST_F(Fp8RoundCuda, SquaresOfMatrices) {
  for (const Shape& s :
       {Shape{1, 1, 0, {}, 2}, {129, 127, 1, {}, 3}, {256, 384, 0, {}, 1}, {64, 260, 4, {}, 5}}) {
    ASSERT_NO_FATAL_FAILURE(expect_all(Fp8Blocks::kSquare, s));
  }
}

}  // namespace
}  // namespace tamis
