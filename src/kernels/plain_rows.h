// Plain loops over rows for the reference implementations: sums in double, one term after the
// other.
#pragma once

#include <cstdint>

namespace tamis::plain {

// sum of a[i] b[i]
template <typename T>
double dot(const T* a, const T* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// to += scale * from
template <typename T>
void add_scaled(double scale, const T* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += static_cast<T>(scale * from[i]);
}

}  // namespace tamis::plain
