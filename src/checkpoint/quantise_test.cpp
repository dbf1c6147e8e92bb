#include "checkpoint/quantise.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tensor/convert.h"

namespace tamis {
namespace {

// The stored row through the definition that the kernels use.
std::vector<float> read_back(DType dtype, const void* q, const std::vector<uint16_t>& scales,
                             int64_t n) {
  Weight w{static_cast<const std::byte*>(q), dtype, 1, n, dtype_bytes(dtype, n)};
  w.scales = reinterpret_cast<const std::byte*>(scales.data());
  w.scale_dtype = DType::kBF16;
  std::vector<float> out(static_cast<size_t>(n));
  dequantize_row(w, 0, 0, n, out.data());
  return out;
}

struct Row {
  std::vector<uint16_t> scales;
  std::vector<float> back;
  std::vector<int> q;
};

Row quantise(const std::vector<float>& w, DType dtype) {
  const int64_t n = static_cast<int64_t>(w.size());
  Row row;
  row.scales.resize(static_cast<size_t>((n + kIntGroup - 1) / kIntGroup));
  if (dtype == DType::kI8) {
    std::vector<int8_t> q(w.size());
    int8_quant_row(w.data(), n, q.data(), row.scales.data());
    row.back = read_back(dtype, q.data(), row.scales, n);
    row.q.assign(q.begin(), q.end());
    return row;
  }
  std::vector<uint8_t> q((w.size() + 1) / 2);
  int4_quant_row(w.data(), n, q.data(), row.scales.data());
  row.back = read_back(dtype, q.data(), row.scales, n);
  for (int64_t i = 0; i < n; ++i) {
    const int bits = q[static_cast<size_t>(i / 2)] >> (i % 2 * 4) & 15;
    row.q.push_back(bits < 8 ? bits : bits - 16);
  }
  return row;
}

// Half a step, and what float rounding of the quotient can move a tie: one ulp of 127 steps.
void expect_half_a_step(const std::vector<float>& w, const Row& row, int smallest, int largest) {
  for (size_t i = 0; i < w.size(); ++i) {
    const double scale = bf16_to_float(row.scales[i / kIntGroup]);
    const double bound = scale * (0.5 + 128 * std::numeric_limits<float>::epsilon());
    RC_ASSERT(std::fabs(static_cast<double>(w[i]) - static_cast<double>(row.back[i])) <= bound);
    RC_ASSERT(row.q[i] >= smallest);
    RC_ASSERT(row.q[i] <= largest);
  }
}

std::vector<float> any_row() {
  const auto n = *rc::gen::inRange<size_t>(0, 100);
  const auto exponent = *rc::gen::inRange(-140, 120);
  const auto ints = *rc::gen::container<std::vector<int>>(n, rc::gen::inRange(-32768, 32768));
  std::vector<float> w;
  for (const int i : ints) w.push_back(std::ldexp(static_cast<float>(i), exponent - 15));
  return w;
}

TEST(Quantise, Int8IsWithinHalfAStep) {
  EXPECT_TRUE(rc::check("int8", [] {
    const std::vector<float> w = any_row();
    expect_half_a_step(w, quantise(w, DType::kI8), -127, 127);
  }));
}

TEST(Quantise, Int4IsWithinHalfAStep) {
  EXPECT_TRUE(rc::check("int4", [] {
    const std::vector<float> w = any_row();
    expect_half_a_step(w, quantise(w, DType::kI4), -8, 7);
  }));
}

// The scale is the smallest bf16 that does not clip.
TEST(Quantise, ScaleIsRoundedUp) {
  std::vector<float> w(32, 0.0f);
  w[5] = -127.5f;
  Row row = quantise(w, DType::kI8);
  const float scale = bf16_to_float(row.scales[0]);
  EXPECT_GE(scale * 127, 127.5f);
  EXPECT_LT(bf16_to_float(static_cast<uint16_t>(row.scales[0] - 1)) * 127, 127.5f);
  EXPECT_EQ(row.q[5], -127);
  w[5] = 127;
  row = quantise(w, DType::kI8);
  EXPECT_EQ(bf16_to_float(row.scales[0]), 1.0f);
  EXPECT_EQ(row.back, w);
}

TEST(Quantise, TiesGoToEven) {
  const std::vector<float> w = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f};
  EXPECT_EQ(quantise(w, DType::kI8).q, (std::vector<int>{127, 0, 2, 2, 0, -2, -2}));
}

// -8 is used where it helps: these eight values are exact with a scale of 1, not with 8/7.
TEST(Quantise, Int4TakesTheBetterScale) {
  const std::vector<float> w = {-8, 7, 1, 2, 3, -5, 4, 6};
  const Row row = quantise(w, DType::kI4);
  EXPECT_EQ(row.back, w);
  EXPECT_EQ(row.q, (std::vector<int>{-8, 7, 1, 2, 3, -5, 4, 6}));
}

// A group without negative values, or without positive ones, has one side of zero width.
TEST(Quantise, Int4OfOneSign) {
  EXPECT_EQ(quantise({7, 1, 2, 0}, DType::kI4).q, (std::vector<int>{7, 1, 2, 0}));
  EXPECT_EQ(quantise({-8, -1, -2, 0}, DType::kI4).q, (std::vector<int>{-8, -1, -2, 0}));
  EXPECT_EQ(quantise({0, -0.0f, 3.5f}, DType::kI4).back, (std::vector<float>{0, 0, 3.5f}));
}

TEST(Quantise, LowNibbleComesFirst) {
  const std::vector<float> w = {7, -1, 3};
  std::vector<uint8_t> q(2);
  uint16_t scale = 0;
  int4_quant_row(w.data(), 3, q.data(), &scale);
  EXPECT_EQ(q, (std::vector<uint8_t>{0xF7, 0x03}));
  EXPECT_EQ(bf16_to_float(scale), 1.0f);
}

TEST(Quantise, ZerosAndTheSmallestFloat) {
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    std::vector<float> w(33, 0.0f);
    Row row = quantise(w, dtype);
    EXPECT_EQ(row.back, w);
    EXPECT_EQ(bf16_to_float(row.scales[0]), 1.0f);
    w[0] = std::numeric_limits<float>::denorm_min();
    row = quantise(w, dtype);
    EXPECT_GT(bf16_to_float(row.scales[0]), 0.0f);
    EXPECT_EQ(row.back[0], 0.0f);
    w[0] = std::numeric_limits<float>::max();
    row = quantise(w, dtype);
    EXPECT_TRUE(std::isfinite(bf16_to_float(row.scales[0])));
  }
}

}  // namespace
}  // namespace tamis
