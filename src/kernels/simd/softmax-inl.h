// The online softmax of attention over tiles of 64 positions, for one instruction set.
//
// For each tile in list order: m' = max(m, scores), alpha = exp(m - m'), p = exp(score - m'),
// l = l alpha + sum p (16 lanes, then as in tiles-inl.h), acc = acc alpha + p v. A NaN score makes
// the row's l and with it its output NaN.
#if defined(TAMIS_KERNELS_SIMD_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_SOFTMAX_INL_H_
#undef TAMIS_KERNELS_SIMD_SOFTMAX_INL_H_
#else
#define TAMIS_KERNELS_SIMD_SOFTMAX_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/simd/tiles-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

constexpr int64_t kTile = 64;  // positions of a tile

// e^x for x <= 0, within 2 ulp; 0 below -87, where the result would leave the normal floats. NaN
// stays NaN. Every lane depends on its own x alone.
HWY_INLINE LaneVec exp_nonpositive(LaneVec x) {
  const LaneTag d;
  const hn::RebindToSigned<LaneTag> di;
  const LaneVec n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  LaneVec r = hn::MulAdd(n, hn::Set(d, -0.693359375f), x);  // ln 2 in two parts, the first exact
  r = hn::MulAdd(n, hn::Set(d, 2.12194440e-4f), r);
  LaneVec p = hn::Set(d, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto exponent = hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127));
  const LaneVec value = hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(exponent)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.0f)), value);
}

HWY_INLINE float exp_nonpositive(float x) {
  const LaneTag d;
  return hn::GetLane(exp_nonpositive(hn::Set(d, x)));
}

// The running softmax of one row.
struct RowState {
  float max = -HUGE_VALF;
  float sum = 0;
};

// Turns `end` scores, whole steps of 16 of which n are real, into weights. Returns what the row's
// sums of values are to be multiplied by before those of these scores are added: alpha.
HWY_INLINE float softmax_part(float* HWY_RESTRICT scores, int64_t n, int64_t end, RowState* state) {
  const LaneTag d;
  for (int64_t i = n; i < end; ++i) scores[i] = -HUGE_VALF;
  LaneVec top = hn::Set(d, state->max);
  for (int64_t i = 0; i < end; i += kVec) top = hn::Max(top, hn::LoadU(d, scores + i));
  const float new_max = hn::GetLane(hn::MaxOfLanes(d, top));
  const LaneVec max = hn::Set(d, new_max);
  FourSums lanes = zero_sums();  // k0 of the last part gathers the others
  for (int64_t part = 0; part < kDotLanes; part += kVec) {
    LaneVec sum = hn::Zero(d);
    for (int64_t i = part; i < end; i += kDotLanes) {
      const LaneVec p = exp_nonpositive(hn::Sub(hn::LoadU(d, scores + i), max));
      hn::StoreU(p, d, scores + i);
      sum = hn::Add(sum, p);
    }
    lanes.k0 = part == 0 ? sum : hn::Add(lanes.k0, sum);
  }
  float sums[4];
  store_sums(lanes, sums);
  const float alpha = exp_nonpositive(state->max - new_max);
  state->sum = state->sum * alpha + sums[0];
  state->max = new_max;
  return alpha;
}

// The same for the 64 scores of a tile; value_rows takes alpha.
HWY_INLINE float softmax_tile(float* HWY_RESTRICT scores, int64_t n, RowState* state) {
  return softmax_part(scores, n, kTile, state);
}

// x rounded to bf16, nearest even; NaN stays NaN.
HWY_INLINE LaneVec round_bf16(LaneVec x) {
  const LaneTag d;
  const hn::RebindToUnsigned<LaneTag> du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
  const auto kept = hn::BitCast(d, hn::And(rounded, hn::Set(du, 0xFFFF0000u)));
  return hn::IfThenElse(hn::IsNaN(x), x, kept);
}

// A whole row of scores [n], n >= 1, becomes its softmax, rounded to bf16. There is room for n
// rounded up to whole tiles; what lies behind n becomes 0. The sum has 16 lanes over the row, added
// as in tiles-inl.h.
HWY_INLINE void softmax_row_bf16(float* HWY_RESTRICT scores, int64_t n) {
  const LaneTag d;
  const int64_t end = round_up(n, kTile);
  for (int64_t i = n; i < end; ++i) scores[i] = -HUGE_VALF;
  LaneVec top = hn::Set(d, -HUGE_VALF);
  for (int64_t i = 0; i < end; i += kVec) top = hn::Max(top, hn::LoadU(d, scores + i));
  const LaneVec max = hn::Set(d, hn::GetLane(hn::MaxOfLanes(d, top)));
  FourSums lanes = zero_sums();  // k0 of the last part gathers the others
  for (int64_t part = 0; part < kDotLanes; part += kVec) {
    LaneVec sum = hn::Zero(d);
    for (int64_t i = part; i < end; i += kDotLanes) {
      const LaneVec p = exp_nonpositive(hn::Sub(hn::LoadU(d, scores + i), max));
      hn::StoreU(p, d, scores + i);
      sum = hn::Add(sum, p);
    }
    lanes.k0 = part == 0 ? sum : hn::Add(lanes.k0, sum);
  }
  float sums[4];
  store_sums(lanes, sums);
  const LaneVec total = hn::Set(d, sums[0]);
  for (int64_t i = 0; i < end; i += kVec) {
    hn::StoreU(round_bf16(hn::Div(hn::LoadU(d, scores + i), total)), d, scores + i);
  }
}

// What the sums of two lists are multiplied by when they become one.
struct MergeFactors {
  float own, other;
};

// state <- the softmax over the list of state followed by that of other.
HWY_INLINE MergeFactors merge_states(const RowState& other, RowState* state) {
  const float new_max = std::fmax(state->max, other.max);
  const MergeFactors f = {exp_nonpositive(state->max - new_max),
                          exp_nonpositive(other.max - new_max)};
  state->sum = state->sum * f.own + other.sum * f.other;
  state->max = new_max;
  return f;
}

// acc, state <- the softmax over the list of (acc, state) followed by the list of (other_acc,
// other): both scaled to the larger maximum. Columns as value_rows has them.
HWY_INLINE void merge_rows(const float* HWY_RESTRICT other_acc, const RowState& other, int64_t cols,
                           float* HWY_RESTRICT acc, int64_t block_stride, RowState* state) {
  const LaneTag d;
  const MergeFactors f = merge_states(other, state);
  const LaneVec va = hn::Set(d, f.own), vb = hn::Set(d, f.other);
  for (int64_t c = 0; c < cols; c += kVec) {
    const int64_t at = c / kValueBlock * block_stride + c % kValueBlock;
    const LaneVec scaled = hn::Mul(hn::LoadU(d, acc + at), va);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, other_acc + at), vb, scaled), d, acc + at);
  }
}

// out[0 .. cols) = acc / sum. Columns of acc as value_rows has them.
HWY_INLINE void finish_row(const float* HWY_RESTRICT acc, int64_t block_stride,
                           const RowState& state, int64_t cols, float* HWY_RESTRICT out) {
  const LaneTag d;
  const float inverse = 1.0f / state.sum;
  const LaneVec scale = hn::Set(d, inverse);
  int64_t c = 0;
  for (; c + kVec <= cols; c += kVec) {
    const int64_t at = c / kValueBlock * block_stride + c % kValueBlock;
    hn::StoreU(hn::Mul(hn::LoadU(d, acc + at), scale), d, out + c);
  }
  const float* rest = acc + c / kValueBlock * block_stride + c % kValueBlock;
  for (; c < cols; ++c) out[c] = *rest++ * inverse;
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
