#include "kernels/simd/row_ops.h"

#include <algorithm>
#include <cmath>

#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/row_ops.cpp"
#include <hwy/foreach_target.h>
//
#include "kernels/simd/lanes-inl.h"
#include "kernels/simd/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void softmax_row_v(float*, int64_t, int64_t, float) { throw_no_vectors(); }
void softmax_backward_row_v(const float*, float*, int64_t, float) { throw_no_vectors(); }
void add_row_v(const float*, int64_t, float*) { throw_no_vectors(); }
void index_score_row_v(const float*, int64_t, const float*, int64_t, int64_t, float*) {
  throw_no_vectors();
}
void index_score_backward_row_v(float*, int64_t, const float*, int64_t, const float*, int64_t,
                                int64_t, float*) {
  throw_no_vectors();
}
#else

// A step of eight columns from c on, of which count are real; the rest reads as 0.
HWY_INLINE F8 load_part(const float* p, int64_t count) {
  if (HWY_LIKELY(count >= kLanes)) return load8(p);
  HWY_ALIGN float t[kLanes];
  std::fill_n(t, kLanes, 0.0f);
  std::copy_n(p, count, t);
  return load8(t);
}

HWY_INLINE void store_part(F8 v, int64_t count, float* p) {
  if (HWY_LIKELY(count >= kLanes)) return store8(v, p);
  HWY_ALIGN float t[kLanes];
  store8(v, t);
  std::copy_n(t, count, p);
}

// x[i] <- e^(x[i] - max), element by element.
HWY_INLINE void exp_row(float* x, int64_t n, float max) {
  const LaneTag d;
  const LaneVec top = hn::Set(d, max);
  int64_t i = 0;
  for (; i + kVec <= n; i += kVec) {
    hn::StoreU(exp_nonpositive(hn::Sub(hn::LoadU(d, x + i), top)), d, x + i);
  }
  for (; i < n; ++i) x[i] = exp_nonpositive(x[i] - max);
}

HWY_INLINE F8 sub8(F8 a, F8 b) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) a.part[i] = hn::Sub(a.part[i], b.part[i]);
  return a;
}

HWY_INLINE F8 add8(F8 a, F8 b) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) a.part[i] = hn::Add(a.part[i], b.part[i]);
  return a;
}

HWY_INLINE F8 relu8(F8 a) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    a.part[i] = hn::Max(a.part[i], hn::Zero(FloatTag()));
  }
  return a;
}

// a where x > 0, else 0.
HWY_INLINE F8 where_positive8(F8 x, F8 a) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    const auto positive = hn::Gt(x.part[i], hn::Zero(FloatTag()));
    a.part[i] = hn::IfThenElseZero(positive, a.part[i]);
  }
  return a;
}

void softmax_row_v(float* x, int64_t n, int64_t width, float scale) {
  float top = -HUGE_VALF;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, x[i] *= scale);
  exp_row(x, n, top);
  F8 sum = zero8();
  for (int64_t i = 0; i < n; i += kLanes) sum = add8(sum, load_part(x + i, n - i));
  const F8 inverse = set8(1.0f / sum1(sum));
  for (int64_t i = 0; i < n; i += kLanes) {
    store_part(mul8(load_part(x + i, n - i), inverse), n - i, x + i);
  }
  std::fill(x + n, x + std::max(n, width), 0.0f);
}

void softmax_backward_row_v(const float* p, float* dp, int64_t n, float scale) {
  F8 dot = zero8();
  for (int64_t i = 0; i < n; i += kLanes) {
    dot = fma8(load_part(p + i, n - i), load_part(dp + i, n - i), dot);
  }
  const F8 mean = set8(sum1(dot)), s = set8(scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F8 d = sub8(load_part(dp + i, n - i), mean);
    store_part(mul8(mul8(load_part(p + i, n - i), d), s), n - i, dp + i);
  }
}

void add_row_v(const float* x, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const F8 s = add8(load_part(sum + i, n - i), load_part(x + i, n - i));
    store_part(s, n - i, sum + i);
  }
}

void index_score_row_v(const float* a, int64_t stride, const float* w, int64_t heads, int64_t n,
                       float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    F8 sum = zero8();
    for (int64_t j = 0; j < heads; ++j) {
      sum = fma8(set8(w[j]), relu8(load_part(a + j * stride + i, n - i)), sum);
    }
    store_part(sum, n - i, out + i);
  }
}

void index_score_backward_row_v(float* a, int64_t stride, const float* w, int64_t heads,
                                const float* di, int64_t n, int64_t width, float* dw) {
  for (int64_t j = 0; j < heads; ++j) {
    float* row = a + j * stride;
    F8 sum = zero8();
    const F8 weight = set8(w[j]);
    for (int64_t i = 0; i < n; i += kLanes) {
      const F8 x = load_part(row + i, n - i), d = load_part(di + i, n - i);
      sum = fma8(d, relu8(x), sum);
      store_part(where_positive8(x, mul8(d, weight)), n - i, row + i);
    }
    dw[j] = sum1(sum);
    std::fill(row + n, row + width, 0.0f);
  }
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(softmax_row_v);
HWY_EXPORT(softmax_backward_row_v);
HWY_EXPORT(add_row_v);
HWY_EXPORT(index_score_row_v);
HWY_EXPORT(index_score_backward_row_v);

}  // namespace

void softmax_row(float* x, int64_t n, int64_t width, float scale) {
  HWY_DYNAMIC_DISPATCH(softmax_row_v)(x, n, width, scale);
}

void softmax_backward_row(const float* p, float* dp, int64_t n, float scale) {
  HWY_DYNAMIC_DISPATCH(softmax_backward_row_v)(p, dp, n, scale);
}

void add_row(const float* x, int64_t n, float* sum) { HWY_DYNAMIC_DISPATCH(add_row_v)(x, n, sum); }

void index_score_row(const float* a, int64_t stride, const float* w, int64_t heads, int64_t n,
                     float* out) {
  HWY_DYNAMIC_DISPATCH(index_score_row_v)(a, stride, w, heads, n, out);
}

void index_score_backward_row(float* a, int64_t stride, const float* w, int64_t heads,
                              const float* di, int64_t n, int64_t width, float* dw) {
  HWY_DYNAMIC_DISPATCH(index_score_backward_row_v)(a, stride, w, heads, di, n, width, dw);
}

}  // namespace tamis
#endif  // HWY_ONCE
