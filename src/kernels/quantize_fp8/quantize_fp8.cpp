#include "kernels/quantize_fp8/quantize_fp8.h"

#include <algorithm>
#include <cmath>

#include "kernels/weight.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

constexpr float kMax = 448.0f;
constexpr float kTiny = 1e-4f;

float amax_of(const float* x, int64_t n) {
  float m = 0;
  for (int64_t i = 0; i < n; ++i) m = std::max(m, std::fabs(x[i]));
  return m;
}

void encode(const float* x, int64_t n, float scale, uint8_t* q) {
  for (int64_t i = 0; i < n; ++i) q[i] = float_to_e4m3(x[i] / scale);
}

}  // namespace

void act_quant_row(const float* x, int64_t n, bool ue8m0, uint8_t* q, float* scales) {
  for (int64_t begin = 0; begin < n; begin += kFp8Block) {
    const int64_t count = std::min(kFp8Block, n - begin);
    float scale = std::max(amax_of(x + begin, count), kTiny) * (1.0f / kMax);
    if (ue8m0) scale = round_up_to_power_of_two(scale);
    encode(x + begin, count, scale, q + begin);
    scales[begin / kFp8Block] = scale;
  }
}

void kv_quant_row(const float* x, int64_t n, uint8_t* q, float* scales) {
  for (int64_t begin = 0; begin < n; begin += kFp8Block) {
    const int64_t count = std::min(kFp8Block, n - begin);
    const float scale = round_up_to_power_of_two(std::max(amax_of(x + begin, count) / kMax, kTiny));
    encode(x + begin, count, scale, q + begin);
    scales[begin / kFp8Block] = scale;
  }
}

void block_quant(const float* w, int64_t rows, int64_t cols, bool ue8m0, uint8_t* q,
                 float* scales) {
  const int64_t scale_cols = (cols + kFp8Block - 1) / kFp8Block;
  for (int64_t r0 = 0; r0 < rows; r0 += kFp8Block) {
    for (int64_t c0 = 0; c0 < cols; c0 += kFp8Block) {
      const int64_t r1 = std::min(rows, r0 + kFp8Block), n = std::min(kFp8Block, cols - c0);
      float amax = kTiny;
      for (int64_t r = r0; r < r1; ++r) amax = std::max(amax, amax_of(w + r * cols + c0, n));
      float scale = amax / kMax;
      if (ue8m0) scale = round_up_to_power_of_two(scale);
      for (int64_t r = r0; r < r1; ++r) encode(w + r * cols + c0, n, scale, q + r * cols + c0);
      scales[r0 / kFp8Block * scale_cols + c0 / kFp8Block] = scale;
    }
  }
}

}  // namespace tamis
