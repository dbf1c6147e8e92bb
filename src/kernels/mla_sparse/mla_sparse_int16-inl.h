// The tiles of mla_sparse with products of integers, for one instruction set; the formulas stand in
// mla_sparse_int16.h.
//
// The shapes are those of the float tiles: 6 rows x 2 vectors of sums, a broadcast meets a vector.
// A lane is a pair of int16, multiplied and added into 32 bits by one instruction: pairs of
// dimensions for scores, pairs of entries for values. A tile's entries are rounded once, eight at a
// time, and stored in both orders; the float rows never leave L1.
#if defined(TAMIS_KERNELS_MLA_SPARSE_INT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_MLA_SPARSE_INT16_INL_H_
#undef TAMIS_KERNELS_MLA_SPARSE_INT16_INL_H_
#else
#define TAMIS_KERNELS_MLA_SPARSE_INT16_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/mla_sparse/mla_sparse_int16.h"
#include "kernels/mla_sparse/mla_sparse_rows-inl.h"
#include "kernels/simd/panels-inl.h"
#include "kernels/simd/softmax-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

// Tiles whose entries are weighed and summed together: a sum over a whole group meets float once.
constexpr int64_t kGroupTiles = kInt16Group / kTile;
static_assert(kInt16Group % kTile == 0);
// Floats between the scores of two rows: not a power of two, whose rows share few sets of L1.
constexpr int64_t kScoreStride = kInt16Group + kDotLanes;

using PairTag = hn::RebindToSigned<LaneTag>;  // a lane: two int16, or an int32
using PairVec = hn::Vec<PairTag>;

// Rows of integers: latents and RoPE parts, each padded with zeros to whole steps of 16.
struct IntSizes {
  explicit IntSizes(const MlaSparseArgs& a)
      : latent(a.kv.layout.kv_lora),
        rope(a.kv.layout.rope),
        rope_begin(round_up(latent, kDotLanes)),
        dim(rope_begin + round_up(rope, kDotLanes)),
        cols(round_up(latent, kValueBlock)),
        latent_limit(int16_limit(latent)),
        rope_limit(int16_limit(rope)) {}
  int64_t latent, rope, rope_begin, dim, cols;
  int latent_limit, rope_limit;
};

// To every lane of sum, the products of the two int16 of a with those of b.
HWY_INLINE PairVec add_pairs(PairVec a, PairVec b, PairVec sum) {
  const PairTag d;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::Repartition<int16_t, PairTag> shorts;
  auto unused = hn::Zero(d);
  sum =
      hn::ReorderWidenMulAccumulate(d, hn::BitCast(shorts, a), hn::BitCast(shorts, b), sum, unused);
  // Or GCC keeps a copy of every sum in memory.
  __asm__("" : "+v"(sum.raw));
  return sum;
#else
  (void)d;
  const auto low = [](PairVec v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  const auto high = [](PairVec v) { return hn::ShiftRight<16>(v); };
  return hn::Add(sum, hn::Add(hn::Mul(low(a), low(b)), hn::Mul(high(a), high(b))));
#endif
}

HWY_INLINE PairVec load_pairs(const int16_t* p) {
  const hn::Repartition<int16_t, PairTag> shorts;
  return hn::BitCast(PairTag(), hn::LoadU(shorts, p));
}

HWY_INLINE PairVec broadcast_pair(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return hn::Set(PairTag(), pair);
}

// x to the nearest integer, as the last 16 bits of a lane. |x| < 2^15: x + 1.5 * 2^23 has no bits
// behind the point.
HWY_INLINE PairVec nearest_bits(LaneVec x) {
  const LaneTag d;
  return hn::BitCast(PairTag(), hn::Add(x, hn::Set(d, 0x1.8p23F)));
}

// s_x of a row by its largest magnitude: NaN if a value is not finite, 0 if the row counts as
// zeros. `integers`: its integers are not all 0.
HWY_INLINE float int16_scale(float largest, int limit, bool* integers) {
  *integers = largest <= std::numeric_limits<float>::max() && largest >= kSmallestInt16Row;
  if (HWY_LIKELY(*integers)) return largest / static_cast<float>(limit);
  return largest < kSmallestInt16Row ? 0 : std::numeric_limits<float>::quiet_NaN();
}

// quantize_int16 of x, padded with zeros to whole steps of 16, as is out.
HWY_INLINE float quantise_row(const float* HWY_RESTRICT x, int64_t n, int limit,
                              int16_t* HWY_RESTRICT out) {
  const LaneTag d;
  const PairTag di;
  const hn::Rebind<int16_t, LaneTag> shorts;
  const auto magnitude = hn::Set(di, 0x7FFFFFFF);
  auto most = hn::Zero(di);
  const int64_t end = round_up(n, kDotLanes);
  for (int64_t i = 0; i < end; i += kVec) {
    // Magnitudes are in the order of their bits, NaN above all.
    most = hn::Max(most, hn::And(hn::BitCast(di, hn::LoadU(d, x + i)), magnitude));
  }
  const auto largest = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(di, most)));
  bool integers;
  const float scale = int16_scale(largest, limit, &integers);
  if (HWY_UNLIKELY(!integers)) {
    std::fill_n(out, end, int16_t{0});
    return scale;
  }
  const auto inverse = hn::Set(d, static_cast<float>(limit) / largest);
  for (int64_t i = 0; i < end; i += kVec) {
    const auto scaled = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse));
    hn::StoreU(hn::DemoteTo(shorts, scaled), shorts, out + i);
  }
  return scale;
}

// quantise_row of a row of bf16, whose length is a multiple of 2 * kVec. A lane is a pair of
// values: the even one in the low bits, as in memory.
HWY_INLINE float quantise_bf16_row(const std::byte* HWY_RESTRICT in, int64_t n, int limit,
                                   int16_t* HWY_RESTRICT out) {
  const LaneTag d;
  const PairTag di;
  const auto* x = reinterpret_cast<const int16_t*>(in);
  const auto high = hn::Set(di, static_cast<int32_t>(0xFFFF0000));
  const auto even = [](PairVec pair) HWY_ATTR { return hn::ShiftLeft<16>(pair); };
  const auto odd = [high](PairVec pair) HWY_ATTR { return hn::And(pair, high); };
  const auto magnitude = hn::Set(di, 0x7FFFFFFF);
  auto most = hn::Zero(di);
  for (int64_t i = 0; i < n; i += 2 * kVec) {
    const PairVec pair = load_pairs(x + i);
    most = hn::Max(most, hn::Max(hn::And(even(pair), magnitude), hn::And(pair, magnitude)));
  }
  // The bits of an even neighbour behind those of an odd value do not change the order.
  const auto largest = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(di, hn::And(most, high))));
  bool integers;
  const float scale = int16_scale(largest, limit, &integers);
  if (HWY_UNLIKELY(!integers)) {
    std::fill_n(out, n, int16_t{0});
    return scale;
  }
  const auto inverse = hn::Set(d, static_cast<float>(limit) / largest);
  const auto integer = [&](PairVec bits) HWY_ATTR {
    return nearest_bits(hn::Mul(hn::BitCast(d, bits), inverse));
  };
  const auto low = hn::Set(di, 0xFFFF);
  for (int64_t i = 0; i < n; i += 2 * kVec) {
    const PairVec pair = load_pairs(x + i);
    const PairVec first = hn::And(integer(even(pair)), low);
    const PairVec both = hn::Or(first, hn::ShiftLeft<16>(integer(odd(pair))));
    const hn::Repartition<int16_t, PairTag> shorts;
    hn::StoreU(hn::BitCast(shorts, both), shorts, out + i);
  }
  return scale;
}

// A row of latents and RoPE values side by side, in place: the latter to their place in a row of
// IntSizes, zeros between and behind.
HWY_INLINE void pad_row(const IntSizes& s, float* row) {
  if (s.rope_begin != s.latent) {
    std::copy_backward(row + s.latent, row + s.latent + s.rope, row + s.rope_begin + s.rope);
    std::fill(row + s.latent, row + s.rope_begin, 0.0F);
  }
  std::fill(row + s.rope_begin + s.rope, row + s.dim, 0.0F);
}

// What a thread holds of a task, in floats of scratch memory.
struct IntBuffers {
  // Queries: [rows of a register tile, from tile to tile][dim / 2][rows][2], and their scales.
  int16_t* q;
  float *q_latent_scale, *q_rope_scale;
  // Keys of a tile: [64 / kPanelKeys][dim / 2][kPanelKeys][2]. Values of a group of tiles:
  // [cols / kValueBlock][kInt16Group / 2][kValueBlock][2].
  int16_t *panels, *values;
  float *k_latent_scale, *k_rope_scale;  // [kInt16Group]
  float* row;                            // one row of floats
  int16_t* rows;                         // eight rows of integers
  float* scores;                         // [rows][kScoreStride]
  int16_t* weights;                      // [rows][kInt16Group]
  float* w_scale;                        // [rows]
  MergeFactors* factors;                 // [rows]

  static int64_t q_floats(const IntSizes& s, int64_t rows) { return rows * (s.dim / 2 + 2); }
  static int64_t tile_floats(const IntSizes& s) {
    return kTile * s.dim / 2 + kInt16Group * s.cols / 2 + 2 * kInt16Group + s.dim +
           kTileRows * s.dim;
  }
  static int64_t score_floats(int64_t rows) { return rows * (kScoreStride + kInt16Group / 2 + 3); }

  IntBuffers(const IntSizes& s, int64_t task_rows, float* q_room, float* tile_room,
             float* score_room) {
    q = reinterpret_cast<int16_t*>(q_room);
    q_latent_scale = q_room + task_rows * s.dim / 2;
    q_rope_scale = q_latent_scale + task_rows;
    panels = reinterpret_cast<int16_t*>(tile_room);
    tile_room += kTile * s.dim / 2;
    values = reinterpret_cast<int16_t*>(tile_room);
    k_latent_scale = tile_room + kInt16Group * s.cols / 2;
    k_rope_scale = k_latent_scale + kInt16Group;
    row = k_rope_scale + kInt16Group;
    rows = reinterpret_cast<int16_t*>(row + s.dim);
    scores = score_room;
    score_room += task_rows * kScoreStride;
    weights = reinterpret_cast<int16_t*>(score_room);
    w_scale = score_room + task_rows * kInt16Group / 2;
    factors = reinterpret_cast<MergeFactors*>(w_scale + task_rows);
  }
};

HWY_INLINE void load_int_queries(const MlaSparseArgs& a, const IntSizes& s, const Task& task,
                                 const IntBuffers& b) {
  for (int64_t r = 0; r < task.rows();) {
    const int64_t group = tile_rows(task.rows() - r);
    for (int64_t i = 0; i < group; ++i) {
      const int64_t t = task.t0 + (r + i) / task.heads(), h = task.h0 + (r + i) % task.heads();
      const float* latent = a.q_latent + (t * a.heads + h) * s.latent;
      const float* pe = a.q_pe + t * a.q_pe_token_stride + h * a.q_pe_head_stride;
      for (int64_t c = 0; c < s.latent; ++c) b.row[c] = latent[c] * a.softmax_scale;
      for (int64_t c = 0; c < s.rope; ++c) b.row[s.latent + c] = pe[c] * a.softmax_scale;
      pad_row(s, b.row);
      int16_t* out = b.rows + i * s.dim;
      b.q_latent_scale[r + i] = quantise_row(b.row, s.latent, s.latent_limit, out);
      b.q_rope_scale[r + i] =
          quantise_row(b.row + s.rope_begin, s.rope, s.rope_limit, out + s.rope_begin);
    }
    with_rows(group, [&]<int kRows>() {
      int16_t* out = b.q + r * s.dim;
      for (int64_t d = 0; d < s.dim; d += 2) {
        TAMIS_UNROLL for (int i = 0; i < kRows; ++i, out += 2) {
          std::memcpy(out, b.rows + i * s.dim + d, 2 * sizeof(int16_t));
        }
      }
    });
    r += group;
  }
}

// Eight rows of integers from entry `first` of a tile on, into panels and values.
HWY_INLINE void store_entries(const IntSizes& s, int64_t tile, int64_t first, const IntBuffers& b) {
  constexpr int64_t kPairs = 2 * kLanes;  // dimensions of eight lanes
  int16_t* panel = b.panels + first / kPanelKeys * kPanelKeys * s.dim + first % kPanelKeys * 2;
  for (int64_t d = 0; d < s.dim; d += kPairs) {
    I8x v[kLanes];
    TAMIS_UNROLL for (int64_t i = 0; i < kLanes; ++i) {
      v[i] = load_ints(reinterpret_cast<const int8_t*>(b.rows + i * s.dim + d));
    }
    transpose8(v);
    TAMIS_UNROLL for (int64_t i = 0; i < kLanes; ++i) {
      store_ints(v[i], reinterpret_cast<int8_t*>(panel + (d + 2 * i) * kPanelKeys));
    }
  }
  const hn::Rebind<uint16_t, LaneTag> shorts;
  const hn::RebindToUnsigned<LaneTag> words;
  const auto load = [&](int64_t i, int64_t c) HWY_ATTR {
    const auto* p = reinterpret_cast<const uint16_t*>(b.rows + i * s.dim + c);
    return hn::PromoteTo(words, hn::LoadU(shorts, p));
  };
  // Columns behind rope_begin belong to no value; the sums of those below cols are never read.
  const int64_t cols = std::min(s.cols, s.dim);
  for (int64_t c = 0; c < cols; c += kVec) {
    const int64_t block = c / kValueBlock * kGroupTiles + tile;
    int16_t* out = b.values + (block * kTile + first) * kValueBlock + c % kValueBlock * 2;
    TAMIS_UNROLL for (int64_t i = 0; i < kLanes; i += 2) {
      const auto pair = hn::Or(load(i, c), hn::ShiftLeft<16>(load(i + 1, c)));
      hn::StoreU(pair, words, reinterpret_cast<uint32_t*>(out + i * kValueBlock));
    }
  }
}

// The n entries of the list from `begin` on, as tile `tile` of its group, and zeros to whole
// panels.
HWY_NOINLINE inline void load_int_tile(const MlaSparseArgs& a, const IntSizes& s,
                                       const KvSequence& seq, const List& list, int64_t begin,
                                       int64_t n, int64_t tile, const IntBuffers& b) {
  const bool bf16 = a.kv.layout.latent_format == KvFormat::kBF16 && s.latent % (2 * kVec) == 0 &&
                    s.rope % (2 * kVec) == 0;
  for (int64_t i = 0; i < round_up(n, kPanelKeys); ++i) {
    int16_t* out = b.rows + i % kLanes * s.dim;
    float *latent_scale = b.k_latent_scale + tile * kTile + i,
          *rope_scale = b.k_rope_scale + tile * kTile + i;
    const std::byte* in = i < n ? latent_row(a.kv, seq, list[begin + i]) : nullptr;
    if (in != nullptr && bf16) {
      *latent_scale = quantise_bf16_row(in, s.latent, s.latent_limit, out);
      *rope_scale = quantise_bf16_row(in + s.latent * 2, s.rope, s.rope_limit, out + s.rope_begin);
    } else if (in != nullptr) {
      latent_row_to_float(a.kv.layout, in, b.row);
      pad_row(s, b.row);
      *latent_scale = quantise_row(b.row, s.latent, s.latent_limit, out);
      *rope_scale = quantise_row(b.row + s.rope_begin, s.rope, s.rope_limit, out + s.rope_begin);
    } else {
      std::fill_n(out, s.dim, int16_t{0});
      *latent_scale = *rope_scale = 0;
    }
    if (i % kLanes == kLanes - 1) store_entries(s, tile, i + 1 - kLanes, b);
  }
}

// `steps` pairs of kRows rows of q times those of a panel.
template <int kRows>
HWY_INLINE void add_panel(const int16_t* HWY_RESTRICT q, const int16_t* HWY_RESTRICT panel,
                          int64_t steps, PairVec (&sum)[kRows][2]) {
  constexpr int64_t kShorts = 2 * kVec;  // of a vector
  TAMIS_UNROLL for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = hn::Zero(PairTag());
  TAMIS_UNROLL_4 for (int64_t i = 0; i < steps; ++i, q += 2 * kRows, panel += 2 * kShorts) {
    const PairVec k0 = load_pairs(panel), k1 = load_pairs(panel + kShorts);
    TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
      const PairVec x = broadcast_pair(q + 2 * r);
      sum[r][0] = add_pairs(x, k0, sum[r][0]);
      sum[r][1] = add_pairs(x, k1, sum[r][1]);
    }
  }
}

// Scores of rows r .. r + kRows with the panel of entry `k` of tile `tile`.
template <int kRows>
void int_scores(const IntSizes& s, const IntBuffers& b, int64_t r, int64_t tile, int64_t k) {
  const LaneTag d;
  const int16_t *q = b.q + r * s.dim, *panel = b.panels + k * s.dim;
  const int64_t at = tile * kTile + k;
  float* out = b.scores + r * kScoreStride + at;
  PairVec sum[kRows][2];
  add_panel<kRows>(q, panel, s.rope_begin / 2, sum);
  TAMIS_UNROLL for (int i = 0; i < kRows; ++i) {
    const LaneVec scale = hn::Set(d, b.q_latent_scale[r + i]);
    TAMIS_UNROLL for (int v = 0; v < 2; ++v) {
      const LaneVec both = hn::Mul(scale, hn::LoadU(d, b.k_latent_scale + at + v * kVec));
      hn::StoreU(hn::Mul(hn::ConvertTo(d, sum[i][v]), both), d, out + i * kScoreStride + v * kVec);
    }
  }
  add_panel<kRows>(q + s.rope_begin * kRows, panel + s.rope_begin * kPanelKeys,
                   (s.dim - s.rope_begin) / 2, sum);
  TAMIS_UNROLL for (int i = 0; i < kRows; ++i) {
    const LaneVec scale = hn::Set(d, b.q_rope_scale[r + i]);
    TAMIS_UNROLL for (int v = 0; v < 2; ++v) {
      float* to = out + i * kScoreStride + v * kVec;
      const LaneVec both = hn::Mul(scale, hn::LoadU(d, b.k_rope_scale + at + v * kVec));
      hn::StoreU(hn::MulAdd(hn::ConvertTo(d, sum[i][v]), both, hn::LoadU(d, to)), d, to);
    }
  }
}

// Scores of rows [from, rows) of the task with the n entries of tile `tile` of a group. between(i)
// is called before panel i.
template <typename Between>
HWY_INLINE void score_int_tile(const IntSizes& s, const IntBuffers& b, int64_t tile, int64_t from,
                               int64_t rows, int64_t n, const Between& between) {
  for (int64_t k = 0; k < n; k += kPanelKeys) {
    between(k);
    for (int64_t r = 0; r < rows;) {
      const int64_t group = tile_rows(rows - r);
      if (r + group > from) {
        with_rows(group, [&]<int kRows>() { int_scores<kRows>(s, b, r, tile, k); });
      }
      r += group;
    }
  }
}

// The weights p [end] of a row, in place, times the scales of their entries, as integers; returns
// s_w. Entries from n on may be NaN and must not show.
HWY_INLINE float quantise_weights(float* p, const float* HWY_RESTRICT k_scale, int64_t n,
                                  int64_t end, int16_t* HWY_RESTRICT out) {
  const LaneTag d;
  for (int64_t i = 0; i < end; i += kVec) {
    hn::StoreU(hn::Mul(hn::LoadU(d, p + i), hn::LoadU(d, k_scale + i)), d, p + i);
  }
  std::fill(p + n, p + end, 0.0F);
  return quantise_row(p, end, kWeightLimit, out);
}

// Scores of row r with the first n of a group's entries become weights; 0 from n to the end of its
// panels. Returns what the row's sums of values are to be multiplied by before the group's.
HWY_INLINE float weigh_int_row(const IntBuffers& b, int64_t r, int64_t n, int64_t group,
                               RowState* state) {
  float* scores = b.scores + r * kScoreStride;
  const int64_t end = round_up(group, kPanelKeys);
  const float alpha = softmax_part(scores, n, end, state);
  b.w_scale[r] = quantise_weights(scores, b.k_latent_scale, n, end, b.weights + r * kInt16Group);
  return alpha;
}

// sum[r][c] = s_w[r] (weights[r] . values of column c), merged into what is there by `factors`;
// without them sum is set. One block of columns, `pairs` pairs of entries.
template <int kRows>
void int_values(const int16_t* HWY_RESTRICT weights, const int16_t* HWY_RESTRICT values,
                int64_t pairs, const float* scale, const MergeFactors* factors,
                float* HWY_RESTRICT sum) {
  const LaneTag d;
  constexpr int64_t kShorts = 2 * kVec;
  // The sums of all rows leave the caches between two groups.
  TAMIS_UNROLL for (int r = 0; r < kRows; ++r) hwy::Prefetch(sum + r * kValueBlock);
  PairVec acc[kRows][2];
  TAMIS_UNROLL for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = hn::Zero(PairTag());
  TAMIS_UNROLL_4 for (int64_t i = 0; i < pairs; ++i, values += 2 * kShorts) {
    const PairVec v0 = load_pairs(values), v1 = load_pairs(values + kShorts);
    TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
      const PairVec w = broadcast_pair(weights + r * kInt16Group + 2 * i);
      acc[r][0] = add_pairs(w, v0, acc[r][0]);
      acc[r][1] = add_pairs(w, v1, acc[r][1]);
    }
  }
  TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
    TAMIS_UNROLL for (int v = 0; v < 2; ++v) {
      float* to = sum + r * kValueBlock + v * kVec;
      LaneVec x = hn::Mul(hn::ConvertTo(d, acc[r][v]), hn::Set(d, scale[r]));
      if (factors != nullptr) {
        const LaneVec before = hn::Mul(hn::LoadU(d, to), hn::Set(d, factors[r].own));
        x = hn::MulAdd(x, hn::Set(d, factors[r].other), before);
      }
      hn::StoreU(x, d, to);
    }
  }
}

// The values of a group of `entries`, for rows [from, rows). acc as the float tiles have it:
// [blocks of columns][rows][kValueBlock]. It is set or, with b.factors, `merges` with what is
// there.
HWY_NOINLINE inline void sum_int_group(const IntSizes& s, const IntBuffers& b, int64_t entries,
                                       int64_t from, int64_t rows, bool merges, float* acc) {
  const int16_t* block = b.values;
  for (int64_t c = 0; c < s.cols; c += kValueBlock) {
    for (int64_t r = from; r < rows;) {
      const int64_t group = tile_rows(rows - r);
      with_rows(group, [&]<int kRows>() {
        int_values<kRows>(b.weights + r * kInt16Group, block, (entries + 1) / 2, b.w_scale + r,
                          merges ? b.factors + r : nullptr, acc + r * kValueBlock);
      });
      r += group;
    }
    block += kInt16Group * kValueBlock;
    acc += rows * kValueBlock;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
