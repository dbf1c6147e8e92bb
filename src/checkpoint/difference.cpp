#include "checkpoint/difference.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <span>

#include "checkpoint/checksum.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

// Half the step of the uniform quantiser with the least squared error for a normal distribution of
// variance 1 (Max 1960, even numbers of levels): where the search for a scale starts.
constexpr double kNormalScale[kMaxDifferenceBits] = {0.798,  0.498,  0.293,  0.168,
                                                     0.0941, 0.0520, 0.0284, 0.0154};
constexpr int kRounds = 6;

// The code nearest to x = d / scale: values are odd, so the borders between codes are even.
int nearest_code(double x, int levels) {
  return static_cast<int>(std::clamp(std::floor((x + levels) / 2), 0.0, levels - 1.0));
}

// The scale with the least squared error for the codes that `scale` gives.
double fit_scale(const float* d, int64_t n, int levels, double scale) {
  const double inverse = 1 / scale;
  double products = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double q = 2 * nearest_code(d[i] * inverse, levels) + 1 - levels;
    products += q * d[i];
    squares += q * q;
  }
  return products / squares;
}

double squared_error(const float* d, int64_t n, int levels, double scale) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double error = d[i] - (2 * nearest_code(d[i] / scale, levels) + 1 - levels) * scale;
    sum += error * error;
  }
  return sum;
}

uint16_t best_scale(const float* d, int64_t n, int bits) {
  const int levels = 1 << bits;
  double squares = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    squares += static_cast<double>(d[i]) * d[i];
    largest = std::max(largest, std::fabs(static_cast<double>(d[i])));
  }
  const double normal = std::sqrt(squares / static_cast<double>(n)) * kNormalScale[bits - 1];
  // The last one clips nothing.
  const double starts[] = {normal, 0.7 * normal, 1.4 * normal, largest / (levels - 1)};
  uint16_t best = 0;
  double least = squares;  // of scale 0
  for (double scale : starts) {
    for (int round = 0; round < kRounds && scale > 0; ++round) {
      scale = fit_scale(d, n, levels, scale);
    }
    const uint16_t stored = float_to_bf16(static_cast<float>(scale));
    const double rounded = bf16_to_float(stored);
    if (!(rounded > 0) || !std::isfinite(rounded)) continue;
    const double error = squared_error(d, n, levels, rounded);
    if (error < least) {
      least = error;
      best = stored;
    }
  }
  return best;
}

}  // namespace

void pack_difference_row(const float* d, int64_t n, int bits, uint8_t* codes, uint16_t* scale) {
  std::fill_n(codes, difference_row_bytes(n, bits), uint8_t{0});
  *scale = n > 0 ? best_scale(d, n, bits) : uint16_t{0};
  if (*scale == 0) return;
  const double fit = bf16_to_float(*scale);
  double squares = 0, products = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int code = nearest_code(d[i] / fit, 1 << bits);
    squares += static_cast<double>(d[i]) * d[i];
    products += static_cast<double>(2 * code + 1 - (1 << bits)) * d[i];
    const int shifted = code << (i * bits % 8);
    uint8_t* byte = codes + i * bits / 8;
    byte[0] = static_cast<uint8_t>(byte[0] | (shifted & 0xFF));
    if (shifted > 0xFF) byte[1] = static_cast<uint8_t>(byte[1] | shifted >> 8);
  }
  // Least squares shrinks a row by its relative squared error, 12 % at 2 bits: every row would be
  // drawn to the base. This scale keeps the row's length along itself, at a little more noise.
  *scale = float_to_bf16(static_cast<float>(squares / products));
}

void unpack_difference_row(const uint8_t* codes, uint16_t scale, int64_t n, int bits, float* d) {
  const int levels = 1 << bits;
  const float value = bf16_to_float(scale);
  for (int64_t i = 0; i < n; ++i) {
    const int shift = static_cast<int>(i * bits % 8);
    const uint8_t* byte = codes + i * bits / 8;
    int code = byte[0] >> shift;
    if (shift + bits > 8) code |= byte[1] << (8 - shift);
    d[i] = static_cast<float>(2 * (code & (levels - 1)) + 1 - levels) * value;
  }
}

std::string weights_checksum(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> lines;
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    const TensorInfo& info = *entry.info;
    const std::byte* data = checkpoint.tensor(info.name).data;
    lines[info.name] = std::string(dtype_name(info.dtype)) + " " + info.shape.to_string() + " " +
                       checksum_hex({data, static_cast<size_t>(info.bytes)});
  }
  checkpoint.check_unchanged();
  std::string text;
  for (const auto& [name, line] : lines) text += name + " " + line + "\n";
  return checksum_hex(std::as_bytes(std::span(text)));
}

}  // namespace tamis
