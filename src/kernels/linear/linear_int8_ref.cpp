#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/integer_weight.h"
#include "kernels/linear/linear_int8_impl.h"

namespace tamis {
namespace {

int64_t groups_of(int64_t cols) { return (cols + kIntGroup - 1) / kIntGroup; }

// The rows of x of one product.
struct QuantisedRows {
  explicit QuantisedRows(const LinearArgs& a)
      : groups(groups_of(a.w.cols)),
        q(static_cast<size_t>(a.m * a.w.cols)),
        scales(static_cast<size_t>(a.m * groups)) {
    for (int64_t m = 0; m < a.m; ++m) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t c = g * kIntGroup;
        scales[static_cast<size_t>(m * groups + g)] =
            quantize_int8(a.x + m * a.x_stride + c, std::min(kIntGroup, a.w.cols - c),
                          &q[static_cast<size_t>(m * a.w.cols + c)]);
      }
    }
  }
  int64_t groups;
  std::vector<int8_t> q;
  std::vector<float> scales;
};

float product(const LinearArgs& a, const QuantisedRows& x, int64_t m, int64_t r, const int8_t* w) {
  float y = 0;
  for (int64_t g = 0; g < x.groups; ++g) {
    int32_t sum = 0;
    for (int64_t c = g * kIntGroup; c < std::min(a.w.cols, (g + 1) * kIntGroup); ++c) {
      sum += int32_t{w[c]} * x.q[static_cast<size_t>(m * a.w.cols + c)];
    }
    const float scale =
        group_scale(a.w, r, g * kIntGroup) * x.scales[static_cast<size_t>(m * x.groups + g)];
    y = std::fma(static_cast<float>(sum), scale, y);
  }
  return y;
}

void linear_int8_reference(KernelContext& context, const LinearArgs& a) {
  const QuantisedRows x(a);
  context.pool().run(a.w.rows, [&](int64_t r, int) {
    std::vector<int8_t> w(static_cast<size_t>(a.w.cols));
    integer_row(a.w, r, 0, a.w.cols, w.data());
    for (int64_t m = 0; m < a.m; ++m) a.y[m * a.y_stride + r] = product(a, x, m, r, w.data());
  });
}

}  // namespace

float quantize_int8(const float* x, int64_t n, int8_t* q) {
  std::fill_n(q, n, int8_t{0});
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(x[i]));
  }
  if (largest < kSmallestInt8Group) return 0;
  const float inverse = kInt8Max / largest;
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return largest / kInt8Max;
}

void linears_int8_reference(KernelContext& context, const std::span<const LinearArgs>& args) {
  for (const LinearArgs& a : args) linear_int8_reference(context, a);
}

}  // namespace tamis
