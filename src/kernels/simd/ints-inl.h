// Integer vectors beside the eight float lanes of lanes-inl.h: groups of 32 narrow weights, their
// products with int8 activations, sums, transposes. Included once per target.
//
// Integer sums are exact, so that their order is free; only its speed is chosen here.
#if defined(TAMIS_KERNELS_SIMD_INTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_INTS_INL_H_
#undef TAMIS_KERNELS_SIMD_INTS_INL_H_
#else
#define TAMIS_KERNELS_SIMD_INTS_INL_H_
#endif

#include <cstring>

#include "kernels/simd/lanes-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

constexpr int64_t kGroupValues = 32;  // values with one scale
constexpr int64_t kHalves = 2;        // a group is two runs of 16 values
constexpr int64_t kHalfValues = kGroupValues / kHalves;

using IntTag = hn::CappedTag<int32_t, 8>;
using ShortTag = hn::CappedTag<int16_t, 16>;
constexpr int64_t kPartShorts = static_cast<int64_t>(hn::MaxLanes(ShortTag()));
static_assert(kPartShorts == 2 * kPartLanes);

// Eight int32.
struct I8x {
  hn::Vec<IntTag> part[kParts];
};
// A group of 32 values as int16: two times 16.
struct Group {
  hn::Vec<ShortTag> half[kHalves][kParts];
};

HWY_INLINE I8x zero_ints() {
  I8x r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) r.part[i] = hn::Zero(IntTag());
  return r;
}

HWY_INLINE F8 to_floats(I8x v) {
  F8 r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    r.part[i] = hn::ConvertTo(FloatTag(), v.part[i]);
  }
  return r;
}

// Eight ints of two times four. A template, so that only the branch of this target is compiled.
template <typename V>
HWY_INLINE I8x side_by_side(V low, V high) {
  I8x r;
  if constexpr (kParts == 1) {
    r.part[0] = hn::Combine(hn::Twice<hn::DFromV<V>>(), high, low);
  } else {
    r.part[0] = low;
    r.part[kParts - 1] = high;
  }
  return r;
}

// 32 bytes, columns in order.
struct I8Groups {
  static constexpr int64_t kBytes = 32;
  static HWY_INLINE Group load(const int8_t* p) {
    const hn::Rebind<int8_t, ShortTag> bytes;
    Group g;
    TAMIS_UNROLL for (int64_t h = 0; h < kHalves; ++h) {
      TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
        const auto v = hn::LoadU(bytes, p + h * kHalfValues + i * kPartShorts);
        g.half[h][i] = hn::PromoteTo(ShortTag(), v);
      }
    }
    return g;
  }
  // The 32 values as bytes, four in a lane.
  static HWY_INLINE I8x load_bytes(const int8_t* p) {
    const hn::Repartition<int8_t, IntTag> bytes;
    I8x r;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      r.part[i] = hn::BitCast(IntTag(), hn::LoadU(bytes, p + i * kPartShorts * 2));
    }
    return r;
  }
};

// 16 bytes of two values: the first half is the even columns, the second the odd ones.
struct I4Groups {
  static constexpr int64_t kBytes = 16;
  static HWY_INLINE Group load(const int8_t* p) {
    const hn::Rebind<int8_t, ShortTag> bytes;
    Group g;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const auto v = hn::PromoteTo(ShortTag(), hn::LoadU(bytes, p + i * kPartShorts));
      g.half[0][i] = hn::ShiftRight<12>(hn::ShiftLeft<12>(v));
      g.half[1][i] = hn::ShiftRight<4>(v);
    }
    return g;
  }
  static HWY_INLINE I8x load_bytes(const int8_t* p) {
    const hn::FixedTag<uint8_t, kHalfValues> half;
    const hn::Repartition<uint16_t, decltype(half)> pairs;
    const auto low = hn::Set(half, 0x0F), sign = hn::Set(half, 8);
    const auto v = hn::LoadU(half, reinterpret_cast<const uint8_t*>(p));
    const auto high = hn::BitCast(half, hn::ShiftRight<4>(hn::BitCast(pairs, v)));
    const auto even = hn::Sub(hn::Xor(hn::And(v, low), sign), sign);
    const auto odd = hn::Sub(hn::Xor(hn::And(high, low), sign), sign);
    const hn::Repartition<int32_t, decltype(half)> d;
    return side_by_side(hn::BitCast(d, even), hn::BitCast(d, odd));
  }
};

// Products of two groups, summed to eight lanes.
HWY_INLINE I8x multiply_group(const Group& w, const Group& x) {
  I8x r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    auto a = hn::Zero(IntTag()), b = hn::Zero(IntTag());
    TAMIS_UNROLL for (int64_t h = 0; h < kHalves; ++h) {
      a = hn::ReorderWidenMulAccumulate(IntTag(), w.half[h][i], x.half[h][i], a, b);
    }
    r.part[i] = hn::Add(a, b);
  }
  return r;
}

// Bytes 0 and 2 of every lane as two int16, and bytes 1 and 3.
HWY_INLINE I8x even_bytes(I8x v) {
  const hn::Repartition<int16_t, IntTag> shorts;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    const auto pairs = hn::BitCast(shorts, v.part[i]);
    v.part[i] = hn::BitCast(IntTag(), hn::ShiftRight<8>(hn::ShiftLeft<8>(pairs)));
  }
  return v;
}

HWY_INLINE I8x odd_bytes(I8x v) {
  const hn::Repartition<int16_t, IntTag> shorts;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    v.part[i] = hn::BitCast(IntTag(), hn::ShiftRight<8>(hn::BitCast(shorts, v.part[i])));
  }
  return v;
}

HWY_INLINE I8x load_ints(const int8_t* p) {
  const hn::Repartition<int8_t, IntTag> bytes;
  I8x r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    r.part[i] = hn::BitCast(IntTag(), hn::LoadU(bytes, p + i * kPartLanes * 4));
  }
  return r;
}

HWY_INLINE void store_ints(I8x v, int8_t* p) {
  const hn::Repartition<int8_t, IntTag> bytes;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    hn::StoreU(hn::BitCast(bytes, v.part[i]), bytes, p + i * kPartLanes * 4);
  }
}

// The same two int16 in every lane.
HWY_INLINE I8x broadcast_pair(const int8_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  I8x r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) r.part[i] = hn::Set(IntTag(), pair);
  return r;
}

// To every lane of sum, the products of its two int16 of a with those of b.
HWY_INLINE I8x add_pairs(I8x a, I8x b, I8x sum) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const __m256i products = _mm256_madd_epi16(a.part[0].raw, b.part[0].raw);
  sum.part[0].raw = _mm256_add_epi32(sum.part[0].raw, products);
  // Or GCC adds in the form of a tree, whose leaves it keeps in memory.
  __asm__("" : "+x"(sum.part[0].raw));
#else
  const auto low = [](auto v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  const auto high = [](auto v) { return hn::ShiftRight<16>(v); };
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    const auto x = a.part[i], y = b.part[i];
    const auto products = hn::Add(hn::Mul(low(x), low(y)), hn::Mul(high(x), high(y)));
    sum.part[i] = hn::Add(sum.part[i], products);
  }
#endif
  return sum;
}

// Lanes (0, 2) and (1, 3) of every block of four added, of two vectors side by side.
template <typename V>
HWY_INLINE V pair_sums(V a, V b) {
  const hn::DFromV<V> d;
  return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
}

// The sums of the blocks of four lanes of four vectors, side by side.
template <typename V>
HWY_INLINE V quad_sums(V a, V b, V c, V d) {
  const hn::DFromV<V> t;
  const hn::RepartitionToWide<decltype(t)> wide;
  const auto ab = hn::BitCast(wide, pair_sums(a, b)), cd = hn::BitCast(wide, pair_sums(c, d));
  return hn::Add(hn::BitCast(t, hn::InterleaveLower(wide, ab, cd)),
                 hn::BitCast(t, hn::InterleaveUpper(wide, ab, cd)));
}

// The sum of next(0), of next(1), .. of next(7), each a vector, in the eight lanes of one.
template <typename Next>
HWY_INLINE I8x sums_of_eight(const Next& next) {
  const auto four = [&](int first) {
    const I8x a = next(first), b = next(first + 1), c = next(first + 2), d = next(first + 3);
    I8x r;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      r.part[i] = quad_sums(a.part[i], b.part[i], c.part[i], d.part[i]);
    }
    return r;
  };
  const I8x low = four(0), high = four(4);
  I8x r;
  if constexpr (kParts == 1) {
    const IntTag d;
    r.part[0] = hn::Add(hn::ConcatLowerLower(d, high.part[0], low.part[0]),
                        hn::ConcatUpperUpper(d, high.part[0], low.part[0]));
  } else {
    r.part[0] = hn::Add(low.part[0], low.part[kParts - 1]);
    r.part[kParts - 1] = hn::Add(high.part[0], high.part[kParts - 1]);
  }
  return r;
}

// Rows and columns of 8 x 8 exchanged; E has 8 lanes of 4 bytes.
template <typename E>
HWY_INLINE void transpose8(E* v) {
  using V = std::remove_reference_t<decltype(v[0].part[0])>;
  const hn::DFromV<V> d;
  if constexpr (kParts == 1) {
    const hn::RepartitionToWide<decltype(d)> wide;
    V t[kLanes], u[kLanes];
    TAMIS_UNROLL for (int64_t i = 0; i < kLanes; i += 2) {
      t[i] = hn::InterleaveLower(d, v[i].part[0], v[i + 1].part[0]);
      t[i + 1] = hn::InterleaveUpper(d, v[i].part[0], v[i + 1].part[0]);
    }
    TAMIS_UNROLL for (int64_t i = 0; i < kLanes; i += 4) {
      TAMIS_UNROLL for (int64_t j = 0; j < 2; ++j) {
        const auto a = hn::BitCast(wide, t[i + j]), b = hn::BitCast(wide, t[i + j + 2]);
        u[i + 2 * j] = hn::BitCast(d, hn::InterleaveLower(wide, a, b));
        u[i + 2 * j + 1] = hn::BitCast(d, hn::InterleaveUpper(wide, a, b));
      }
    }
    TAMIS_UNROLL for (int64_t i = 0; i < 4; ++i) {
      v[i].part[0] = hn::ConcatLowerLower(d, u[i + 4], u[i]);
      v[i + 4].part[0] = hn::ConcatUpperUpper(d, u[i + 4], u[i]);
    }
  } else {
    HWY_ALIGN hn::TFromD<hn::DFromV<V>> in[kLanes][kLanes], out[kLanes][kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t p = 0; p < kParts; ++p) hn::Store(v[i].part[p], d, in[i] + p * kPartLanes);
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t j = 0; j < kLanes; ++j) out[j][i] = in[i][j];
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t p = 0; p < kParts; ++p) v[i].part[p] = hn::Load(d, out[i] + p * kPartLanes);
    }
  }
}

// Eight BF16 values as float.
HWY_INLINE F8 load_bf16(const std::byte* p) {
  const hn::RebindToUnsigned<FloatTag> u32;
  const hn::Rebind<uint16_t, FloatTag> u16;
  F8 r;
  TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
    const auto* q = reinterpret_cast<const uint16_t*>(p) + i * kPartLanes;
    const auto bits = hn::PromoteTo(u32, hn::LoadU(u16, q));
    r.part[i] = hn::BitCast(FloatTag(), hn::ShiftLeft<16>(bits));
  }
  return r;
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
