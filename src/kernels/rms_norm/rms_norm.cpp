#include "kernels/rms_norm/rms_norm.h"

#include <cmath>

#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/simd/targets.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

void norm_row(const RmsNormArgs& a, int64_t row) {
  float* x = a.x + row * a.x_stride;
  float* y = a.y + row * a.y_stride;
  if (a.delta != nullptr) {
    const float* delta = a.delta + row * a.width;
    for (int64_t i = 0; i < a.width; ++i) x[i] += delta[i];
  }
  double sum = 0;
  for (int64_t i = 0; i < a.width; ++i) sum += static_cast<double>(x[i]) * x[i];
  const auto mean = static_cast<float>(sum / static_cast<double>(a.width));
  const float scale = 1.0f / std::sqrt(mean + a.eps);
  for (int64_t i = 0; i < a.width; ++i) y[i] = a.w[i] * (x[i] * scale);
  for (int64_t i = 0; a.y_bf16 != nullptr && i < a.width; ++i) {
    a.y_bf16[row * a.width + i] = float_to_bf16(y[i]);
  }
  if (!a.round_bf16) return;
  for (int64_t i = 0; i < a.width; ++i) y[i] = round_to_bf16(y[i]);
  if (a.delta == nullptr) return;
  for (int64_t i = 0; i < a.width; ++i) x[i] = round_to_bf16(x[i]);
}

}  // namespace

void rms_norm_reference(KernelContext& context, const RmsNormArgs& a) {
  context.pool().run(a.rows, [&](int64_t row, int) { norm_row(a, row); });
}

namespace {

constexpr Implementation<RmsNormArgs> kList[] = {
    {"cuda", [](const RmsNormArgs&) { return true; }, rms_norm_cuda},
    {"simd", [](const RmsNormArgs& a) { return vectors_available() && a.y_bf16 == nullptr; },
     rms_norm_simd},
    {"reference", [](const RmsNormArgs&) { return true; }, rms_norm_reference},
};

}  // namespace

void rms_norm(KernelContext& context, const RmsNormArgs& args) {
  dispatch<RmsNormArgs>(context, "rms_norm", kList, args);
}

void rms_norms(KernelContext& context, std::span<const RmsNormArgs> args) {
  if (context.backend() == Backend::kCuda) {
    context.note("rms_norm", "cuda");
    return rms_norms_cuda(context, args);
  }
  for (const RmsNormArgs& a : args) rms_norm(context, a);
}

}  // namespace tamis
