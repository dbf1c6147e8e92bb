#include "tensor/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tamis {
namespace {

TEST(Convert, EveryE4m3ByteRoundTrips) {
  for (int b = 0; b < 256; ++b) {
    const auto byte = static_cast<uint8_t>(b);
    const float x = e4m3_to_float(byte);
    if (std::isnan(x)) {
      EXPECT_EQ(b & 0x7F, 0x7F);
    } else {
      EXPECT_EQ(float_to_e4m3(x), byte) << x;
    }
  }
}

TEST(Convert, E4m3RoundsToNearestEvenAndSaturates) {
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(1.0625f)), 1.0f);   // halfway 1, 1.125: even mantissa
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(1.1875f)), 1.25f);  // halfway 1.125, 1.25
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(1e9f)), 448.0f);
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(-1e9f)), -448.0f);
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(0x1p-10f)), 0.0f);      // halfway 0 and 2^-9
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(0x1.8p-9f)), 0x1p-8f);  // halfway 2^-9 and 2^-8
  EXPECT_EQ(e4m3_to_float(float_to_e4m3(0x1.fp-7f)), 0x1p-6f);  // up into the normals
  EXPECT_EQ(float_to_e4m3(std::nanf("")), 0x7F);
}

TEST(Convert, EveryBf16AndF16ValueRoundTrips) {
  for (uint32_t u = 0; u < 0x10000; ++u) {
    const auto bits = static_cast<uint16_t>(u);
    if (!std::isnan(bf16_to_float(bits))) {
      EXPECT_EQ(float_to_bf16(bf16_to_float(bits)), bits);
    }
    if (!std::isnan(f16_to_float(bits))) {
      EXPECT_EQ(float_to_f16(f16_to_float(bits)), bits);
    }
  }
}

TEST(Convert, PowersOfTwoRoundUp) {
  EXPECT_EQ(round_up_to_power_of_two(1.0f), 1.0f);
  EXPECT_EQ(round_up_to_power_of_two(std::nextafter(1.0f, 2.0f)), 2.0f);
  EXPECT_EQ(round_up_to_power_of_two(0.3f), 0.5f);
}

}  // namespace
}  // namespace tamis
