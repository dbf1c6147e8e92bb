// The inner products of attention and of the indexer, for one instruction set. Read by *_simd.cpp
// files between HWY_BEFORE_NAMESPACE's namespaces, once per instruction set.
//
// Order of sums (the "canonical order"): a dot product has 16 lanes; lane l sums the products of
// d = l, l+16, l+32 ... one after the other with fused multiply-adds. Then lanes l and l+8 are
// added, then (l0+l2)+(l1+l3) within each four, then the two fours. Vectors of 8 lanes make two
// passes, vectors of 16 one: AVX2 and AVX-512 give the same bits, and so does every tile shape.
// NEON's four lanes make four passes, added in their order: its last bits differ.
#if defined(TAMIS_KERNELS_SIMD_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_TILES_INL_H_
#undef TAMIS_KERNELS_SIMD_TILES_INL_H_
#else
#define TAMIS_KERNELS_SIMD_TILES_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/simd/lanes-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kDotLanes = 16;
constexpr int64_t kKeyGroup = 4;  // keys of one register tile

using LaneTag = hn::CappedTag<float, kDotLanes>;
using LaneVec = hn::Vec<LaneTag>;
constexpr int64_t kVec = static_cast<int64_t>(hn::MaxLanes(LaneTag()));

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows of the next register tile: 3 while that leaves no lone row, else 2, else 1.
constexpr int64_t row_group(int64_t rows_left) {
  if (rows_left == 3 || rows_left > 4) return 3;
  return std::min<int64_t>(rows_left, 2);
}

// The partial sums of one row of q against four keys.
struct FourSums {
  LaneVec k0, k1, k2, k3;
};

HWY_INLINE FourSums zero_sums() {
  const LaneTag d;
  return {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
}

HWY_INLINE FourSums add_sums(const FourSums& a, const FourSums& b) {
  return {hn::Add(a.k0, b.k0), hn::Add(a.k1, b.k1), hn::Add(a.k2, b.k2), hn::Add(a.k3, b.k3)};
}

// Four vectors of 4 or 8 lanes to four sums: steps three and four of the canonical order.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_folded(D d, V a, V b, V c, V e, float* HWY_RESTRICT out) {
  const hn::Repartition<uint64_t, D> pairs;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto p = hn::BitCast(pairs, ab), q = hn::BitCast(pairs, ce);
  const V sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, p, q)),
                         hn::BitCast(d, hn::InterleaveUpper(pairs, p, q)));
  if constexpr (hn::MaxLanes(D()) == 8) {
    const hn::Half<D> half;
    hn::StoreU(hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums)), half, out);
  } else {
    hn::StoreU(sums, d, out);
  }
}

// Four sums of 16 lanes, or of 8 where the passes already added lanes l and l+8.
HWY_INLINE void store_sums(const FourSums& s, float* HWY_RESTRICT out) {
  const LaneTag d;
#if HWY_TARGET <= HWY_AVX3
  const hn::Half<LaneTag> h;
  const auto fold = [&](LaneVec v)
                        HWY_ATTR { return hn::Add(hn::LowerHalf(h, v), hn::UpperHalf(h, v)); };
  store_folded(h, fold(s.k0), fold(s.k1), fold(s.k2), fold(s.k3), out);
#else
  store_folded(d, s.k0, s.k1, s.k2, s.k3, out);
#endif
}

HWY_INLINE void add_products(LaneVec q, LaneVec k, LaneVec& sum) { sum = hn::MulAdd(q, k, sum); }

// out[r * out_stride + i] = q[r] . k[i] for r < kRows and i < 4. dim is a multiple of 16; rows are
// padded with zeros. Twelve sums, three rows of q and one key at a time fill the 16 registers.
template <int kRows>
HWY_INLINE void dot_tile(const float* HWY_RESTRICT q, int64_t q_stride, const float* HWY_RESTRICT k,
                         int64_t k_stride, int64_t dim, float* HWY_RESTRICT out,
                         int64_t out_stride) {
  const LaneTag d;
  FourSums total0 = zero_sums(), total1 = total0, total2 = total0;
  for (int64_t part = 0; part < kDotLanes; part += kVec) {
    FourSums s0 = zero_sums(), s1 = s0, s2 = s0;
    for (int64_t i = part; i < dim; i += kDotLanes) {
      const LaneVec q0 = hn::LoadU(d, q + i);
      const LaneVec q1 = kRows > 1 ? hn::LoadU(d, q + q_stride + i) : q0;
      const LaneVec q2 = kRows > 2 ? hn::LoadU(d, q + 2 * q_stride + i) : q0;
      LaneVec key = hn::LoadU(d, k + i);
      add_products(q0, key, s0.k0);
      if constexpr (kRows > 1) add_products(q1, key, s1.k0);
      if constexpr (kRows > 2) add_products(q2, key, s2.k0);
      key = hn::LoadU(d, k + k_stride + i);
      add_products(q0, key, s0.k1);
      if constexpr (kRows > 1) add_products(q1, key, s1.k1);
      if constexpr (kRows > 2) add_products(q2, key, s2.k1);
      key = hn::LoadU(d, k + 2 * k_stride + i);
      add_products(q0, key, s0.k2);
      if constexpr (kRows > 1) add_products(q1, key, s1.k2);
      if constexpr (kRows > 2) add_products(q2, key, s2.k2);
      key = hn::LoadU(d, k + 3 * k_stride + i);
      add_products(q0, key, s0.k3);
      if constexpr (kRows > 1) add_products(q1, key, s1.k3);
      if constexpr (kRows > 2) add_products(q2, key, s2.k3);
    }
    total0 = part == 0 ? s0 : add_sums(total0, s0);
    if constexpr (kRows > 1) total1 = part == 0 ? s1 : add_sums(total1, s1);
    if constexpr (kRows > 2) total2 = part == 0 ? s2 : add_sums(total2, s2);
  }
  store_sums(total0, out);
  if constexpr (kRows > 1) store_sums(total1, out + out_stride);
  if constexpr (kRows > 2) store_sums(total2, out + 2 * out_stride);
}

template <int kRows>
HWY_INLINE void dot_keys(const float* q, int64_t q_stride, const float* k, int64_t k_stride,
                         int64_t keys, int64_t dim, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < keys; i += kKeyGroup) {
    dot_tile<kRows>(q, q_stride, k + i * k_stride, k_stride, dim, out + i, out_stride);
  }
}

// out[r * out_stride + i] = q[r] . k[i] for r < rows and i < round_up(keys, 4): whole groups of
// keys are read and written. Keys go in blocks that stay in L1 with three rows of q: a block is
// read from L2 once and each q once per block, 8 bytes a cycle at 576 dims, where streaming all
// keys past three rows would need 21.
HWY_NOINLINE inline void dot_rows(const float* q, int64_t q_stride, int64_t rows, const float* k,
                                  int64_t k_stride, int64_t keys, int64_t dim, float* out,
                                  int64_t out_stride) {
  constexpr int64_t kBlockFloats = 5120;  // 20 KiB
  const int64_t block = std::max(kKeyGroup, kBlockFloats / dim / kKeyGroup * kKeyGroup);
  for (int64_t i = 0; i < keys; i += block) {
    const int64_t n = std::min(block, keys - i);
    for (int64_t r = 0; r < rows;) {
      const int64_t group = row_group(rows - r);
      const float *q_group = q + r * q_stride, *k_block = k + i * k_stride;
      float* out_group = out + r * out_stride + i;
      if (group == 3) {
        dot_keys<3>(q_group, q_stride, k_block, k_stride, n, dim, out_group, out_stride);
      } else if (group == 2) {
        dot_keys<2>(q_group, q_stride, k_block, k_stride, n, dim, out_group, out_stride);
      } else {
        dot_keys<1>(q_group, q_stride, k_block, k_stride, n, dim, out_group, out_stride);
      }
      r += group;
    }
  }
}

// sum[r] = sum[r] scale[r], then sum[r] = fma(p[r][s], v[s], sum[r]) for s = 0 .. n-1 in order, on
// kWide vectors of columns.
template <int kRows, int kWide>
void value_tile(const float* HWY_RESTRICT p, int64_t p_stride, const float* HWY_RESTRICT v,
                int64_t v_stride, int64_t n, const float* HWY_RESTRICT scale,
                float* HWY_RESTRICT sum, int64_t sum_stride) {
  const LaneTag d;
  LaneVec acc[kRows][kWide];
  TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
    TAMIS_UNROLL for (int i = 0; i < kWide; ++i) {
      acc[r][i] = hn::LoadU(d, sum + r * sum_stride + i * kVec);
      if (scale != nullptr) acc[r][i] = hn::Mul(acc[r][i], hn::Set(d, scale[r]));
    }
  }
  TAMIS_UNROLL_4 for (int64_t s = 0; s < n; ++s, v += v_stride) {
    LaneVec value[kWide];
    TAMIS_UNROLL for (int i = 0; i < kWide; ++i) value[i] = hn::LoadU(d, v + i * kVec);
    TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
      const LaneVec weight = hn::Set(d, p[r * p_stride + s]);
      TAMIS_UNROLL for (int i = 0; i < kWide; ++i) add_products(weight, value[i], acc[r][i]);
    }
  }
  TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
    TAMIS_UNROLL for (int i = 0; i < kWide; ++i) {
      hn::StoreU(acc[r][i], d, sum + r * sum_stride + i * kVec);
    }
  }
}

// Rows of the next register tile of values: full ones, then two nearly even ones, so that none has
// too few sums to hide the latency of fma.
constexpr int64_t kTileRows = 6;  // 12 sums, 2 vectors of values, 1 weight
constexpr int64_t tile_rows(int64_t rows_left) {
  if (rows_left >= 2 * kTileRows || rows_left <= kTileRows) return std::min(rows_left, kTileRows);
  return (rows_left + 1) / 2;
}

// run<R>() for R = rows, 1 to kTileRows.
template <typename Run>
HWY_INLINE void with_rows(int64_t rows, const Run& run) {
  switch (rows) {
    case 6:
      return run.template operator()<6>();
    case 5:
      return run.template operator()<5>();
    case 4:
      return run.template operator()<4>();
    case 3:
      return run.template operator()<3>();
    case 2:
      return run.template operator()<2>();
    default:
      return run.template operator()<1>();
  }
}

template <int kWide>
HWY_INLINE void value_columns(const float* p, int64_t p_stride, int64_t rows, const float* v,
                              int64_t v_stride, int64_t n, const float* scale, float* sum,
                              int64_t sum_stride) {
  for (int64_t r = 0; r < rows;) {
    const int64_t group = tile_rows(rows - r);
    with_rows(group, [&]<int kRows>() {
      value_tile<kRows, kWide>(p + r * p_stride, p_stride, v, v_stride, n,
                               scale == nullptr ? nullptr : scale + r, sum + r * sum_stride,
                               sum_stride);
    });
    r += group;
  }
}

constexpr int64_t kValueBlock = 2 * kVec;  // columns of a full register tile

// sum[r][c] = sum[r][c] scale[r] + sum over s in order of p[r][s] v[s][c], fused, for c <
// round_up(cols, kVec); without scale nothing is multiplied. Columns of sum lie in blocks of
// kValueBlock, `block_stride` apart; inside a block rows are `sum_stride` apart. Rows inside: a
// block of columns of all n values stays in L1 while every row reads it.
HWY_NOINLINE inline void value_rows(const float* p, int64_t p_stride, int64_t rows, const float* v,
                                    int64_t v_stride, int64_t n, int64_t cols, const float* scale,
                                    float* sum, int64_t sum_stride, int64_t block_stride) {
  int64_t c = 0;
  for (; c + kValueBlock <= round_up(cols, kVec); c += kValueBlock, sum += block_stride) {
    value_columns<2>(p, p_stride, rows, v + c, v_stride, n, scale, sum, sum_stride);
  }
  if (c < cols) value_columns<1>(p, p_stride, rows, v + c, v_stride, n, scale, sum, sum_stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
