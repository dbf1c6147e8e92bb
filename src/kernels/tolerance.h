// Tolerances of the kernel tests, derived from number formats, lengths and norms; never tuned.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace tamis {

// Half a unit in the last place of float, relative: one rounding.
constexpr double kUnitF32 = 0x1p-24;
constexpr double kUnitBf16 = 0x1p-8;
constexpr double kUnitE4m3 = 0x1p-4;

// Largest error of a float32 sum of n products against the exact sum, whatever the order and with
// or without fma: gamma_n * sum |x_i w_i|, where sum |x_i w_i| <= |x| |w| (Cauchy-Schwarz).
// x_norm and w_norm are the Euclidean norms. A second rounding for each factor that was itself
// rounded is covered by n + 2. Denormal results add one smallest step each.
inline double dot_tolerance(int64_t n, double x_norm, double w_norm) {
  const double k = static_cast<double>(n) + 2;
  const double gamma = k * kUnitF32 / (1 - k * kUnitF32);
  return gamma * x_norm * w_norm + k * std::numeric_limits<float>::denorm_min();
}

inline double norm2(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

}  // namespace tamis
