#include "kernels/layer_norm/layer_norm.h"

#include <cmath>

#include "kernels/layer_norm/layer_norm_impl.h"

namespace tamis {
namespace {

void norm_row(const LayerNormArgs& a, int64_t row) {
  const float* x = a.x + row * a.x_stride;
  float* y = a.y + row * a.y_stride;
  const auto n = static_cast<double>(a.width);
  double sum = 0, square = 0;
  for (int64_t i = 0; i < a.width; ++i) sum += x[i];
  const double mean = sum / n;
  for (int64_t i = 0; i < a.width; ++i) square += (x[i] - mean) * (x[i] - mean);
  const double scale = 1.0 / std::sqrt(square / n + a.eps);
  for (int64_t i = 0; i < a.width; ++i) {
    y[i] = static_cast<float>((x[i] - mean) * scale * a.w[i] + a.b[i]);
  }
}

void layer_norm_reference(KernelContext& context, const LayerNormArgs& a) {
  context.pool().run(a.rows, [&](int64_t row, int) { norm_row(a, row); });
}

constexpr Implementation<LayerNormArgs> kList[] = {
    {"cuda", [](const LayerNormArgs&) { return true; }, layer_norm_cuda},
    {"reference", [](const LayerNormArgs&) { return true; }, layer_norm_reference},
};

}  // namespace

void layer_norm(KernelContext& context, const LayerNormArgs& args) {
  dispatch<LayerNormArgs>(context, "layer_norm", kList, args);
}

}  // namespace tamis
