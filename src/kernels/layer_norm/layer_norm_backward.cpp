#include "kernels/layer_norm/layer_norm_backward.h"

#include <cmath>
#include <vector>

#include "kernels/layer_norm/layer_norm_backward_impl.h"

namespace tamis {
namespace {

struct Moments {
  double mean, r;
};

template <typename T>
Moments moments_of(const T* x, int64_t width, double eps) {
  const auto n = static_cast<double>(width);
  double sum = 0, square = 0;
  for (int64_t i = 0; i < width; ++i) sum += x[i];
  const double mean = sum / n;
  for (int64_t i = 0; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
  return {mean, 1 / std::sqrt(square / n + eps)};
}

template <typename T>
void backward_row(const LayerNormBackwardArgs<T>& a, int64_t row, double* dw, double* db) {
  const T* x = a.x + row * a.width;
  const T* dy = a.dy + row * a.width;
  T* dx = a.dx + row * a.width;
  const Moments m = moments_of(x, a.width, a.eps);
  const auto n = static_cast<double>(a.width);
  double g_mean = 0, gz_mean = 0;
  for (int64_t i = 0; i < a.width; ++i) {
    const double z = (x[i] - m.mean) * m.r, g = static_cast<double>(a.w[i]) * dy[i];
    g_mean += g / n;
    gz_mean += g * z / n;
    dw[i] += dy[i] * z;
    db[i] += dy[i];
  }
  for (int64_t i = 0; i < a.width; ++i) {
    const double z = (x[i] - m.mean) * m.r, g = static_cast<double>(a.w[i]) * dy[i];
    dx[i] = static_cast<T>(m.r * (g - g_mean - z * gz_mean));
  }
}

template <typename T>
void reference(KernelContext&, const LayerNormBackwardArgs<T>& a) {
  std::vector<double> dw(static_cast<size_t>(a.width)), db(static_cast<size_t>(a.width));
  for (int64_t row = 0; row < a.rows; ++row) backward_row(a, row, dw.data(), db.data());
  for (int64_t i = 0; i < a.width; ++i) {
    a.dw[i] += static_cast<T>(dw[static_cast<size_t>(i)]);
    a.db[i] += static_cast<T>(db[static_cast<size_t>(i)]);
  }
}

template <typename T>
constexpr Implementation<LayerNormBackwardArgs<T>> kList[] = {
    {"reference", [](const LayerNormBackwardArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<LayerNormBackwardArgs<float>> kList<float>[] = {
    {"cuda", [](const LayerNormBackwardArgs<float>&) { return true; }, layer_norm_backward_cuda},
    {"reference", [](const LayerNormBackwardArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void layer_norm_backward(KernelContext& context, const LayerNormBackwardArgs<T>& args) {
  dispatch<LayerNormBackwardArgs<T>>(context, "layer_norm_backward", kList<T>, args);
}

template void layer_norm_backward(KernelContext&, const LayerNormBackwardArgs<float>&);
template void layer_norm_backward(KernelContext&, const LayerNormBackwardArgs<double>&);

}  // namespace tamis
