// swiglu with Highway: element by element, so nothing depends on how it is cut. The end of a task
// goes through the same vector code with padding.
#include <algorithm>
#include <limits>

#include "kernels/simd/targets.h"
#include "kernels/swiglu/swiglu_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/swiglu/swiglu_simd.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/contrib/math/math-inl.h>

#include "kernels/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void swiglu_range(const float*, const float*, int64_t, float*) { throw_no_vectors(); }
#else

// Above this e^x is infinite in float32; Exp is only defined a little further.
constexpr float kOverflow = 88.7228317f;

HWY_INLINE void swiglu_lanes(const float* gate, const float* up, float* y) {
  const FloatTag d;
  const auto g = hn::LoadU(d, gate), minus = hn::Neg(g);
  const auto infinite = minus > hn::Set(d, kOverflow);
  const auto e = hn::IfThenElse(infinite, hn::Set(d, std::numeric_limits<float>::infinity()),
                                hn::Exp(d, hn::IfThenZeroElse(infinite, minus)));
  const auto silu = hn::Div(g, hn::Add(hn::Set(d, 1.0f), e));
  hn::StoreU(hn::Mul(silu, hn::LoadU(d, up)), d, y);
}

void swiglu_range(const float* gate, const float* up, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kPartLanes <= n; i += kPartLanes) swiglu_lanes(gate + i, up + i, y + i);
  if (i == n) return;
  float g[kPartLanes] = {}, u[kPartLanes] = {}, out[kPartLanes];
  std::copy(gate + i, gate + n, g);
  std::copy(up + i, up + n, u);
  swiglu_lanes(g, u, out);
  std::copy_n(out, n - i, y + i);
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(swiglu_range);

}  // namespace

void swiglu_simd(KernelContext& context, const SwigluArgs& a) {
  constexpr int64_t kTask = 4096;  // elements: a few microseconds, more than it costs to start
  const int64_t total = a.rows * a.width;
  context.pool().run((total + kTask - 1) / kTask, [&](int64_t task, int) {
    const int64_t begin = task * kTask, count = std::min(kTask, total - begin);
    HWY_DYNAMIC_DISPATCH(swiglu_range)(a.gate + begin, a.up + begin, count, a.y + begin);
  });
}

}  // namespace tamis
#endif  // HWY_ONCE
