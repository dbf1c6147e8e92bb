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

// sum[r] = fma(p[r][s], v[s], sum[r]) for s = 0 .. n-1 in order, on kWide vectors of columns.
template <int kRows, int kWide>
HWY_INLINE void value_tile(const float* HWY_RESTRICT p, int64_t p_stride,
                           const float* HWY_RESTRICT v, int64_t v_stride, int64_t n,
                           float* HWY_RESTRICT sum, int64_t sum_stride) {
  const LaneTag d;
  const auto load = [&](int64_t row, int64_t i) HWY_ATTR {
    return row < kRows && i < kWide ? hn::LoadU(d, sum + row * sum_stride + i * kVec) : hn::Zero(d);
  };
  const auto store = [&](LaneVec x, int64_t row, int64_t i) HWY_ATTR {
    if (row < kRows && i < kWide) hn::StoreU(x, d, sum + row * sum_stride + i * kVec);
  };
  FourSums s0{load(0, 0), load(0, 1), load(0, 2), load(0, 3)};
  FourSums s1{load(1, 0), load(1, 1), load(1, 2), load(1, 3)};
  FourSums s2{load(2, 0), load(2, 1), load(2, 2), load(2, 3)};
  for (int64_t s = 0; s < n; ++s) {
    const LaneVec p0 = hn::Set(d, p[s]);
    const LaneVec p1 = kRows > 1 ? hn::Set(d, p[p_stride + s]) : p0;
    const LaneVec p2 = kRows > 2 ? hn::Set(d, p[2 * p_stride + s]) : p0;
    const float* HWY_RESTRICT row = v + s * v_stride;
    LaneVec value = hn::LoadU(d, row);
    add_products(p0, value, s0.k0);
    if constexpr (kRows > 1) add_products(p1, value, s1.k0);
    if constexpr (kRows > 2) add_products(p2, value, s2.k0);
    if constexpr (kWide == 4) {
      value = hn::LoadU(d, row + kVec);
      add_products(p0, value, s0.k1);
      if constexpr (kRows > 1) add_products(p1, value, s1.k1);
      if constexpr (kRows > 2) add_products(p2, value, s2.k1);
      value = hn::LoadU(d, row + 2 * kVec);
      add_products(p0, value, s0.k2);
      if constexpr (kRows > 1) add_products(p1, value, s1.k2);
      if constexpr (kRows > 2) add_products(p2, value, s2.k2);
      value = hn::LoadU(d, row + 3 * kVec);
      add_products(p0, value, s0.k3);
      if constexpr (kRows > 1) add_products(p1, value, s1.k3);
      if constexpr (kRows > 2) add_products(p2, value, s2.k3);
    }
  }
  store(s0.k0, 0, 0), store(s0.k1, 0, 1), store(s0.k2, 0, 2), store(s0.k3, 0, 3);
  store(s1.k0, 1, 0), store(s1.k1, 1, 1), store(s1.k2, 1, 2), store(s1.k3, 1, 3);
  store(s2.k0, 2, 0), store(s2.k1, 2, 1), store(s2.k2, 2, 2), store(s2.k3, 2, 3);
}

template <int kWide>
HWY_INLINE void value_columns(const float* p, int64_t p_stride, int64_t rows, const float* v,
                              int64_t v_stride, int64_t n, float* sum, int64_t sum_stride) {
  for (int64_t r = 0; r < rows;) {
    const int64_t group = row_group(rows - r);
    const float* p_group = p + r * p_stride;
    float* out = sum + r * sum_stride;
    if (group == 3) {
      value_tile<3, kWide>(p_group, p_stride, v, v_stride, n, out, sum_stride);
    } else if (group == 2) {
      value_tile<2, kWide>(p_group, p_stride, v, v_stride, n, out, sum_stride);
    } else {
      value_tile<1, kWide>(p_group, p_stride, v, v_stride, n, out, sum_stride);
    }
    r += group;
  }
}

// sum[r][c] += sum over s in order of p[r][s] v[s][c], fused, for c < round_up(cols, kVec). Rows
// inside: a block of columns of all n values stays in L1 while every row reads it.
HWY_NOINLINE inline void value_rows(const float* p, int64_t p_stride, int64_t rows, const float* v,
                                    int64_t v_stride, int64_t n, int64_t cols, float* sum,
                                    int64_t sum_stride) {
  int64_t c = 0;
  for (; c + 4 * kVec <= round_up(cols, kVec); c += 4 * kVec) {
    value_columns<4>(p, p_stride, rows, v + c, v_stride, n, sum + c, sum_stride);
  }
  for (; c < cols; c += kVec) {
    value_columns<1>(p, p_stride, rows, v + c, v_stride, n, sum + c, sum_stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
