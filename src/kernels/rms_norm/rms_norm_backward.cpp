#include "kernels/rms_norm/rms_norm_backward.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/rms_norm/rms_norm_backward_impl.h"

namespace tamis {
namespace {

// Adds one row's dx; returns its r.
template <typename T>
double backward_row(const RmsNormBackwardArgs<T>& a, int64_t row) {
  const T* x = a.x + row * a.x_stride;
  const T* dy = a.dy + row * a.width;
  T* dx = a.dx + row * a.dx_stride;
  const auto n = static_cast<double>(a.width);
  double square = 0, gx = 0;
  for (int64_t i = 0; i < a.width; ++i) {
    square += static_cast<double>(x[i]) * x[i];
    gx += static_cast<double>(a.w[i]) * dy[i] * x[i];
  }
  const double r = 1 / std::sqrt(square / n + a.eps);
  const double pull = r * r * gx / n;
  for (int64_t i = 0; i < a.width; ++i) {
    const double g = static_cast<double>(a.w[i]) * dy[i];
    const auto change = static_cast<T>(r * (g - x[i] * pull));
    dx[i] = a.overwrite ? change : dx[i] + change;
  }
  return r;
}

template <typename T>
void reference(KernelContext& context, const RmsNormBackwardArgs<T>& a) {
  std::vector<double> r(static_cast<size_t>(a.rows));
  context.pool().run(a.rows,
                     [&](int64_t row, int) { r[static_cast<size_t>(row)] = backward_row(a, row); });
  constexpr int64_t kColumns = 32;
  context.pool().run((a.width + kColumns - 1) / kColumns, [&](int64_t task, int) {
    const int64_t begin = task * kColumns, count = std::min(kColumns, a.width - begin);
    double sum[kColumns] = {};
    for (int64_t row = 0; row < a.rows; ++row) {
      const T* x = a.x + row * a.x_stride + begin;
      const T* dy = a.dy + row * a.width + begin;
      const double scale = r[static_cast<size_t>(row)];
      for (int64_t i = 0; i < count; ++i) sum[i] += scale * x[i] * dy[i];
    }
    for (int64_t i = 0; i < count; ++i) a.dw[begin + i] += static_cast<T>(sum[i]);
  });
}

template <typename T>
constexpr Implementation<RmsNormBackwardArgs<T>> kList[] = {
    {"reference", [](const RmsNormBackwardArgs<T>& a) { return a.dx_bf16 == nullptr; },
     reference<T>},
};
template <>
constexpr Implementation<RmsNormBackwardArgs<float>> kList<float>[] = {
    {"cuda", [](const RmsNormBackwardArgs<float>&) { return true; }, rms_norm_backward_cuda},
    {"reference", [](const RmsNormBackwardArgs<float>& a) { return a.dx_bf16 == nullptr; },
     reference<float>},
};

}  // namespace

template <typename T>
void rms_norm_backward(KernelContext& context, const RmsNormBackwardArgs<T>& args) {
  dispatch<RmsNormBackwardArgs<T>>(context, "rms_norm_backward", kList<T>, args);
}

template void rms_norm_backward(KernelContext&, const RmsNormBackwardArgs<float>&);
template void rms_norm_backward(KernelContext&, const RmsNormBackwardArgs<double>&);

}  // namespace tamis
