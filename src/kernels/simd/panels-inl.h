// Dot products of many rows of q with the keys of a tile, for one instruction set: the sums of
// dot_rows (tiles-inl.h), bit for bit, at the full rate of fma.
//
// dot_rows runs along the dimensions, so that both factors are vectors of memory; loads of two
// lines that fall into the same half of the L1's banks wait for each other, and every output needs
// a horizontal sum. Here the keys are transposed once a tile: a vector holds one dimension of
// several keys and meets a broadcast of q. The canonical order is kept by the order of the
// dimensions: all of lane 0 (d = 0, 16, 32 ..), then of the lane that is added to it, and so on up
// the tree of the horizontal sum. q rows and panels hold their dimensions in that order.
#if defined(TAMIS_KERNELS_SIMD_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_PANELS_INL_H_
#undef TAMIS_KERNELS_SIMD_PANELS_INL_H_
#else
#define TAMIS_KERNELS_SIMD_PANELS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/simd/ints-inl.h"
#include "kernels/simd/tiles-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

constexpr int64_t kPanelVecs = 2;
constexpr int64_t kPanelKeys = kPanelVecs * kVec;

// The horizontal sum adds vectors of 8 lanes (two passes, or the halves of 16) or of 4 (four
// passes), then lanes 0..3 of what is left in the order 0, 2, 1, 3, then such fours.
constexpr int64_t kFoldLanes = kVec == 4 ? 4 : 8;
constexpr int64_t kFours = kFoldLanes / 4;
constexpr int64_t kPasses = kDotLanes / kFoldLanes;
constexpr int64_t kFourLanes = 4 * kPasses;  // lanes that one four gathers

// Where lane l comes among the 16 of the order above.
constexpr int64_t lane_place(int64_t l) {
  constexpr int64_t kPlace[4] = {0, 2, 1, 3};
  const int64_t pass = l / kFoldLanes, left = l % kFoldLanes;
  return left / 4 * kFourLanes + kPlace[left % 4] * kPasses + pass;
}

// x [dim] to out [dim]: dimension 16 i + l goes to place(l) * dim / 16 + i. dim is a multiple
// of 16.
HWY_INLINE void order_row(const float* HWY_RESTRICT x, int64_t dim, float* HWY_RESTRICT out) {
  const int64_t steps = dim / kDotLanes, whole = steps / kLanes * kLanes;
  for (int64_t half = 0; half < kDotLanes; half += kLanes) {
    for (int64_t i = 0; i < whole; i += kLanes) {
      F8 v[kLanes];
      TAMIS_UNROLL for (int64_t j = 0; j < kLanes; ++j) {
        v[j] = load8(x + (i + j) * kDotLanes + half);
      }
      transpose8(v);
      TAMIS_UNROLL for (int64_t j = 0; j < kLanes; ++j) {
        store8(v[j], out + lane_place(half + j) * steps + i);
      }
    }
  }
  for (int64_t i = whole; i < steps; ++i) {
    for (int64_t l = 0; l < kDotLanes; ++l) out[lane_place(l) * steps + i] = x[i * kDotLanes + l];
  }
}

// q [rows, dim] in place: register tile after register tile (tile_rows), each [dim, ordered as
// order_row][rows of the tile], one stream. room: kTileRows * dim floats.
HWY_NOINLINE inline void order_queries(float* HWY_RESTRICT q, int64_t rows, int64_t dim,
                                       float* HWY_RESTRICT room) {
  for (int64_t r = 0; r < rows;) {
    const int64_t group = tile_rows(rows - r);
    float* out = q + r * dim;
    for (int64_t i = 0; i < group; ++i) order_row(out + i * dim, dim, room + i * dim);
    with_rows(group, [&]<int kRows>() {
      for (int64_t d = 0; d < dim; ++d) {
        TAMIS_UNROLL for (int i = 0; i < kRows; ++i) out[d * kRows + i] = room[i * dim + d];
      }
    });
    r += group;
  }
}

constexpr int64_t panel_floats(int64_t keys, int64_t dim) {
  return round_up(keys, kPanelKeys) * dim;
}

// keys [n, dim] to panels [keys / kPanelKeys][dim, ordered as order_row][kPanelKeys]; keys from n
// on are 0.
HWY_NOINLINE inline void fill_panels(const float* HWY_RESTRICT keys, int64_t stride, int64_t n,
                                     int64_t dim, float* HWY_RESTRICT panels) {
  static_assert(kPanelKeys % kLanes == 0);
  const int64_t steps = dim / kDotLanes;
  for (int64_t first = 0; first < n; first += kPanelKeys, panels += dim * kPanelKeys) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t half = d % kDotLanes;
      for (int64_t k = 0; k < kPanelKeys; k += kLanes) {
        F8 v[kLanes];
        TAMIS_UNROLL for (int64_t j = 0; j < kLanes; ++j) {
          const int64_t key = first + k + j;
          v[j] = key < n ? load8(keys + key * stride + d) : zero8();
        }
        transpose8(v);
        float* out = panels + d / kDotLanes * kPanelKeys + k;
        TAMIS_UNROLL for (int64_t j = 0; j < kLanes; ++j) {
          store8(v[j], out + lane_place(half + j) * steps * kPanelKeys);
        }
      }
    }
  }
}

// One four of kRows rows of q and one panel: q and panel begin at the four. out is set by the first
// four and added to by the second.
template <int kRows>
void panel_tile(const float* HWY_RESTRICT q, const float* HWY_RESTRICT panel, int64_t steps,
                bool first, float* HWY_RESTRICT out, int64_t out_stride) {
  const LaneTag d;
  // Sums that wait for their partners: of passes, of a pair of lanes, of two pairs.
  HWY_ALIGN float waiting[3][kRows][kPanelKeys];
  LaneVec sum[kRows][kPanelVecs];
  const auto each = [&](const auto& act) HWY_ATTR {  // two short loops: GCC unrolls them
    TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
      TAMIS_UNROLL for (int v = 0; v < kPanelVecs; ++v) act(r, v);
    }
  };
  const auto keep = [&](int level) HWY_ATTR {
    each([&](int r, int v) HWY_ATTR { hn::Store(sum[r][v], d, waiting[level][r] + v * kVec); });
  };
  const auto join = [&](int level) HWY_ATTR {
    each([&](int r, int v) HWY_ATTR {
      sum[r][v] = hn::Add(hn::Load(d, waiting[level][r] + v * kVec), sum[r][v]);
    });
  };
  for (int64_t lane = 0; lane < kFourLanes; ++lane) {
    each([&](int r, int v) HWY_ATTR { sum[r][v] = hn::Zero(d); });
    TAMIS_UNROLL_4 for (int64_t s = 0; s < steps; ++s, q += kRows, panel += kPanelKeys) {
      const LaneVec k0 = hn::LoadU(d, panel), k1 = hn::LoadU(d, panel + kVec);
      TAMIS_UNROLL for (int r = 0; r < kRows; ++r) {
        const LaneVec x = hn::Set(d, q[r]);
        add_products(x, k0, sum[r][0]);
        add_products(x, k1, sum[r][1]);
      }
    }
    const int64_t pass = lane % kPasses, place = lane / kPasses;
    if (pass != 0) join(0);
    if (pass != kPasses - 1) {
      keep(0);
      continue;
    }
    if (place % 2 == 0) {
      keep(1);
      continue;
    }
    join(1);
    place == 1 ? keep(2) : join(2);
  }
  each([&](int r, int v) HWY_ATTR {
    float* to = out + r * out_stride + v * kVec;
    hn::StoreU(first ? sum[r][v] : hn::Add(hn::LoadU(d, to), sum[r][v]), d, to);
  });
}

// out[r * out_stride + i] = q[r] . key i for from <= r < rows and i < round_up(keys, kPanelKeys), q
// as order_queries leaves it, panels as fill_panels does; rows before `from` may be set too.
// between(i) is called before panel i of the first four.
template <typename Between>
HWY_INLINE void dot_panels(const float* q, int64_t from, int64_t rows, const float* panels,
                           int64_t keys, int64_t dim, float* out, int64_t out_stride,
                           const Between& between) {
  const int64_t steps = dim / kDotLanes;
  for (int64_t four = 0; four < kFours; ++four) {
    const int64_t at = four * kFourLanes * steps;
    for (int64_t k = 0; k < keys; k += kPanelKeys) {
      if (four == 0) between(k);
      const float* panel = panels + k * dim + at * kPanelKeys;
      for (int64_t r = 0; r < rows;) {
        const int64_t group = tile_rows(rows - r);
        if (r + group > from) {
          with_rows(group, [&]<int kRows>() {
            panel_tile<kRows>(q + r * dim + at * kRows, panel, steps, four == 0,
                              out + r * out_stride + k, out_stride);
          });
        }
        r += group;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
