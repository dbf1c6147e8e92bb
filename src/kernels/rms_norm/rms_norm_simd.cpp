// rms_norm with Highway. The squares are summed in double in eight lanes, lane l = columns l, l+8,
// ..; the rest is the reference element by element. A row is one task.
#include <algorithm>
#include <cmath>

#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/simd/targets.h"
#include "tensor/convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rms_norm/rms_norm_simd.cpp"
#include <hwy/foreach_target.h>
//
#include "kernels/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void norm_row(const RmsNormArgs&, int64_t) { throw_no_vectors(); }
#else

double sum_of_squares(const float* x, int64_t n) {
  const hn::CappedTag<double, 4> d64;
  const hn::Rebind<float, decltype(d64)> d32;
  constexpr auto kWide = static_cast<int64_t>(hn::MaxLanes(d64));
  constexpr int64_t kVectors = kLanes / kWide;
  hn::Vec<decltype(d64)> acc[kVectors];
  TAMIS_UNROLL for (int64_t j = 0; j < kVectors; ++j) acc[j] = hn::Zero(d64);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    TAMIS_UNROLL for (int64_t j = 0; j < kVectors; ++j) {
      const auto v = hn::PromoteTo(d64, hn::LoadU(d32, x + i + j * kWide));
      acc[j] = hn::MulAdd(v, v, acc[j]);
    }
  }
  HWY_ALIGN double lane[kLanes];
  TAMIS_UNROLL for (int64_t j = 0; j < kVectors; ++j) hn::Store(acc[j], d64, lane + j * kWide);
  for (int64_t l = 0; i < n; ++i, ++l) lane[l] += static_cast<double>(x[i]) * x[i];
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

void add_delta(float* x, const float* delta, int64_t n) {
  const FloatTag d;
  int64_t i = 0;
  for (; i + kPartLanes <= n; i += kPartLanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, delta + i)), d, x + i);
  }
  for (; i < n; ++i) x[i] += delta[i];
}

void norm_row(const RmsNormArgs& a, int64_t row) {
  const FloatTag d;
  float* x = a.x + row * a.x_stride;
  float* y = a.y + row * a.y_stride;
  if (a.delta != nullptr) add_delta(x, a.delta + row * a.width, a.width);
  const auto mean = static_cast<float>(sum_of_squares(x, a.width) / static_cast<double>(a.width));
  const float scale = 1.0f / std::sqrt(mean + a.eps);
  const auto scales = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kPartLanes <= a.width; i += kPartLanes) {
    const auto normed = hn::Mul(hn::LoadU(d, x + i), scales);
    hn::StoreU(hn::Mul(hn::LoadU(d, a.w + i), normed), d, y + i);
  }
  for (; i < a.width; ++i) y[i] = a.w[i] * (x[i] * scale);
  if (!a.round_bf16) return;
  std::transform(y, y + a.width, y, round_to_bf16);
  if (a.delta != nullptr) std::transform(x, x + a.width, x, round_to_bf16);
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(norm_row);

}  // namespace

void rms_norm_simd(KernelContext& context, const RmsNormArgs& a) {
  context.pool().run(a.rows, [&](int64_t row, int) { HWY_DYNAMIC_DISPATCH(norm_row)(a, row); });
}

}  // namespace tamis
#endif  // HWY_ONCE
