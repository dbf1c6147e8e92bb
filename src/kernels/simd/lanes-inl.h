// Eight float lanes on every instruction set, so that sums have one order on all of them: one
// vector with AVX2 and AVX-512, two with NEON. Included once per target by x_simd.cpp files.
#if defined(TAMIS_KERNELS_SIMD_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_LANES_INL_H_
#undef TAMIS_KERNELS_SIMD_LANES_INL_H_
#else
#define TAMIS_KERNELS_SIMD_LANES_INL_H_
#endif

#include <cstdint>

#include "kernels/simd/targets.h"
//
#include <hwy/highway.h>

// GCC unrolls short constant loops only at -O3; accumulators must stay in registers at -O2 too.
// TAMIS_UNROLL_4: a long loop, four rounds at a time. Fewer instructions and jumps for the same
// fma.
#if defined(__clang__)
#define TAMIS_UNROLL _Pragma("clang loop unroll(full)")
#define TAMIS_UNROLL_4 _Pragma("clang loop unroll_count(4)")
#else
#define TAMIS_UNROLL _Pragma("GCC unroll 8")
#define TAMIS_UNROLL_4 _Pragma("GCC unroll 4")
#endif

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kLanes = 8;
using FloatTag = hn::CappedTag<float, 8>;
using QuadTag = hn::FixedTag<float, 4>;
using Quad = hn::Vec<QuadTag>;
constexpr int64_t kPartLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));
constexpr int64_t kParts = kLanes / kPartLanes;
static_assert(kParts == 1 || kParts == 2, "the sums below know one or two vectors");

struct F8 {
  hn::Vec<FloatTag> part[kParts];
};

HWY_INLINE F8 zero8() {
  F8 r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) r.part[i] = hn::Zero(FloatTag());
  return r;
}

HWY_INLINE F8 load8(const float* p) {
  F8 r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    r.part[i] = hn::LoadU(FloatTag(), p + i * kPartLanes);
  }
  return r;
}

HWY_INLINE void store8(F8 v, float* p) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    hn::StoreU(v.part[i], FloatTag(), p + i * kPartLanes);
  }
}

HWY_INLINE F8 set8(float x) {
  F8 r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) r.part[i] = hn::Set(FloatTag(), x);
  return r;
}

HWY_INLINE F8 mul8(F8 a, F8 b) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) a.part[i] = hn::Mul(a.part[i], b.part[i]);
  return a;
}

// a * b + c, rounded once.
HWY_INLINE F8 fma8(F8 a, F8 b, F8 c) {
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    c.part[i] = hn::MulAdd(a.part[i], b.part[i], c.part[i]);
  }
  return c;
}

// Lanes l and l + 4 added.
template <typename V>  // a template, so that only the branch of this target is compiled
HWY_INLINE Quad fold(V v) {
  if constexpr (sizeof(v.part) / sizeof(v.part[0]) == 1) {
    return hn::Add(hn::LowerHalf(QuadTag(), v.part[0]), hn::UpperHalf(QuadTag(), v.part[0]));
  } else {
    return hn::Add(v.part[0], v.part[1]);
  }
}

// The sums of four vectors. Each is ((l0+l4) + (l2+l6)) + ((l1+l5) + (l3+l7)): the order of every
// horizontal sum in the kernels.
HWY_INLINE Quad sum4(F8 a, F8 b, F8 c, F8 d) {
  const QuadTag q;
  const hn::RepartitionToWide<QuadTag> wide;
  const Quad fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
  const Quad ab = hn::Add(hn::InterleaveLower(q, fa, fb), hn::InterleaveUpper(q, fa, fb));
  const Quad cd = hn::Add(hn::InterleaveLower(q, fc, fd), hn::InterleaveUpper(q, fc, fd));
  const auto ab2 = hn::BitCast(wide, ab), cd2 = hn::BitCast(wide, cd);
  return hn::Add(hn::BitCast(q, hn::InterleaveLower(wide, ab2, cd2)),
                 hn::BitCast(q, hn::InterleaveUpper(wide, ab2, cd2)));
}

HWY_INLINE float sum1(F8 v) {
  HWY_ALIGN float t[4];
  hn::Store(fold(v), QuadTag(), t);
  return (t[0] + t[2]) + (t[1] + t[3]);
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
