// The vector code of linear_int8, with Highway. Two paths with the same bits (linear_int8.h states
// the order of the sum):
//
// direct, up to kDirectRows rows of x: eight rows of W in the eight lanes. A group of 32 columns of
// a
//   row becomes int16 and meets x in two multiply-adds; the sums of eight rows are gathered into
//   one vector, converted and scaled once. About 75 instructions for 256 bytes of I8, so bound by
//   the bandwidth of W. The eight rows lie an eighth of the task apart: eight contiguous streams.
// blocked, more rows: 16 rows of W by 512 columns go into a panel (16 KiB, stays in L1) as int16,
//   two columns of eight rows in a vector, and meet two columns of x, broadcast, in tiles of 4 rows
//   of x: 8 sums, 4 registers of x, 2 of W. 22 instructions for 128 products, and for 32 columns 34
//   more to scale the sums. Products of bytes need as many instructions (sign, multiply, widen, add
//   for 32) but three of four, not two, on the two ports that multiply. Bound by those ports.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/linear/linear_int8_impl.h"
#include "kernels/linear/linear_int8_tasks.h"
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear/linear_int8_tiles_simd.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/cache_control.h>

#include "kernels/simd/ints-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void int8_task(const Int8Task&) { throw_no_vectors(); }
void quantise_task(const QuantiseTask&) { throw_no_vectors(); }
#else

static_assert(kGroupValues == kIntGroup && kLaneRows == kLanes);

// ---- x

// quantize_int8 of 32 values; returns s_x.
HWY_INLINE float quantise_group(const float* x, int8_t* q) {
  const hn::Rebind<int8_t, FloatTag> bytes;
  const auto magnitude = hn::Set(IntTag(), 0x7FFFFFFF);
  constexpr int64_t kVectors = kGroupValues / kPartLanes;
  auto largest = hn::Zero(IntTag());
  TAMIS_UNROLL for (int64_t i = 0; i < kVectors; ++i) {
    const auto bits = hn::BitCast(IntTag(), hn::LoadU(FloatTag(), x + i * kPartLanes));
    largest = hn::Max(largest, hn::And(bits, magnitude));  // magnitudes in the order of their bits
  }
  const int32_t bits = hn::GetLane(hn::MaxOfLanes(IntTag(), largest));
  const auto amax = std::bit_cast<float>(bits);
  if (HWY_UNLIKELY(!(amax <= std::numeric_limits<float>::max()) || amax < kSmallestInt8Group)) {
    std::fill_n(q, kGroupValues, int8_t{0});
    return amax < kSmallestInt8Group ? 0 : std::numeric_limits<float>::quiet_NaN();
  }
  const auto inverse = hn::Set(FloatTag(), kInt8Max / amax);
  TAMIS_UNROLL for (int64_t i = 0; i < kVectors; ++i) {
    const auto scaled = hn::Mul(hn::LoadU(FloatTag(), x + i * kPartLanes), inverse);
    hn::StoreU(hn::DemoteTo(bytes, hn::NearestInt(scaled)), bytes, q + i * kPartLanes);
  }
  return amax / kInt8Max;
}

HWY_INLINE void even_columns_first(int8_t* q) {
  int8_t t[kGroupValues];
  std::copy_n(q, kGroupValues, t);
  for (int64_t i = 0; i < kHalfValues; ++i) {
    q[i] = t[2 * i];
    q[kHalfValues + i] = t[2 * i + 1];
  }
}

// 32 bytes as the int16 of QuantisedX.
HWY_INLINE void widen_group(const int8_t* q, int8_t* out) {
  const I8x values = load_ints(q);
  store_ints(even_bytes(values), out);
  store_ints(odd_bytes(values), out + kGroupValues);
}

void quantise_task(const QuantiseTask& task) {
  const LinearArgs& a = *task.args;
  const int64_t groups = group_count(a.w.cols), bytes = value_bytes(a.m);
  for (int64_t begin = 0; begin < groups; begin += kChunkGroups) {
    const int64_t count = std::min(kChunkGroups, groups - begin);
    int8_t* q = task.x.values + begin * task.x.rows * kIntGroup * bytes;
    float* s = task.x.scales + begin * task.x.rows;
    for (int64_t i = 0; i < task.x.rows; ++i) {
      const float* x = a.x + (task.m + i) * a.x_stride;
      for (int64_t g = begin; g < begin + count; ++g, q += kIntGroup * bytes) {
        const int64_t c = g * kIntGroup;
        float edge[kGroupValues] = {};
        const float* from = x + c;
        if (c + kIntGroup > a.w.cols) {
          std::copy_n(from, a.w.cols - c, edge);
          from = edge;
        }
        int8_t narrow[kGroupValues];
        int8_t* values = bytes == 1 ? q : narrow;
        *s++ = quantise_group(from, values);
        if (a.w.dtype == DType::kI4) even_columns_first(values);
        if (bytes != 1) widen_group(narrow, q);
      }
    }
  }
}

// ---- W

// Eight rows of W and their scales.
struct EightRows {
  const int8_t* values[kLaneRows];
  const std::byte* scales[kLaneRows];

  // Rows row, row + apart, .. of W; where there are none, the row before `end` again.
  EightRows(const Weight& w, int64_t row, int64_t apart, int64_t end) {
    for (int64_t i = 0; i < kLaneRows; ++i) {
      const int64_t r = std::min(row + i * apart, end - 1);
      values[i] = reinterpret_cast<const int8_t*>(w.data + r * w.row_bytes);
      scales[i] = w.scales + ((r + w.row_offset) * w.scale_stride + w.col_offset / kIntGroup) * 2;
    }
  }
};

// s_w of the groups [g, g + count), count <= 8: out[k] holds group g + k of the eight rows.
HWY_INLINE void load_scales(const EightRows& rows, int64_t g, int64_t count, F8* out) {
  if (HWY_LIKELY(count == kLanes)) {
    TAMIS_UNROLL for (int64_t i = 0; i < kLaneRows; ++i) {
      out[i] = load_bf16(rows.scales[i] + g * 2);
    }
  } else {
    for (int64_t i = 0; i < kLaneRows; ++i) {
      uint16_t edge[kLanes] = {};
      std::memcpy(edge, rows.scales[i] + g * 2, static_cast<size_t>(count) * 2);
      out[i] = load_bf16(reinterpret_cast<const std::byte*>(edge));
    }
  }
  transpose8(out);
}

// A group of `count` < 32 columns at the end of a row, zeros behind it.
template <typename Groups>
struct EdgeGroup {
  int8_t bytes[kGroupValues] = {};
  EdgeGroup(const int8_t* p, int64_t count) {
    std::copy_n(p, (count * Groups::kBytes + kGroupValues - 1) / kGroupValues, bytes);
  }
};

// ---- direct

// The sums of group g, which is whole, of eight rows.
template <typename Groups>
HWY_INLINE I8x direct_group(const EightRows& rows, int64_t g, const Group& x) {
  return sums_of_eight(
      [&](int i) { return multiply_group(Groups::load(rows.values[i] + g * Groups::kBytes), x); });
}

// The same for the last group with `count` < 32 columns.
template <typename Groups>
I8x direct_edge(const EightRows& rows, int64_t g, int64_t count, const Group& x) {
  return sums_of_eight([&](int i) {
    const EdgeGroup<Groups> edge(rows.values[i] + g * Groups::kBytes, count);
    return multiply_group(Groups::load(edge.bytes), x);
  });
}

template <typename Groups>
HWY_INLINE void fetch_ahead(const EightRows& rows, int64_t g, int64_t scale_bytes) {
  constexpr int64_t kLine = 64;
  TAMIS_UNROLL for (int64_t i = 0; i < kLaneRows; ++i) {
    const int8_t* p = rows.values[i] + g * Groups::kBytes + kAhead;
    TAMIS_UNROLL for (int64_t b = 0; b < kLanes * Groups::kBytes; b += kLine) hwy::Prefetch(p + b);
    hwy::Prefetch(rows.scales[i] + g * 2 + scale_bytes);
  }
}

// Where row i of x has its groups from `g` on, a multiple of eight, as far as the chunk goes.
struct XGroups {
  const int8_t* values;
  const float* scales;
  XGroups(const QuantisedX& x, int64_t i, int64_t g, int64_t groups) {
    const int64_t chunk = g / kChunkGroups * kChunkGroups;
    const int64_t at = chunk * x.rows + i * std::min(kChunkGroups, groups - chunk) + g - chunk;
    values = x.values + at * kIntGroup;
    scales = x.scales + at;
  }
};

// Row i of x times eight rows of W.
template <typename Groups>
HWY_INLINE F8 direct_rows(const Weight& w, const EightRows& rows, const QuantisedX& x, int64_t i) {
  static_assert(kChunkGroups % kLanes == 0);
  const int64_t whole = w.cols / kIntGroup, groups = group_count(w.cols);
  F8 y = zero8();
  for (int64_t begin = 0; begin < groups; begin += kLanes) {
    const int64_t count = std::min(kLanes, groups - begin);
    const XGroups xs(x, i, begin, groups);
    F8 s_w[kLanes];
    load_scales(rows, begin, count, s_w);
    fetch_ahead<Groups>(rows, begin, kAheadScaleRows * w.scale_stride * 2);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t g = begin + k;
      const Group values = I8Groups::load(xs.values + k * kIntGroup);
      const I8x sum = HWY_LIKELY(g < whole)
                          ? direct_group<Groups>(rows, g, values)
                          : direct_edge<Groups>(rows, g, w.cols - g * kIntGroup, values);
      y = fma8(to_floats(sum), mul8(s_w[k], set8(xs.scales[k])), y);
    }
  }
  return y;
}

template <typename Groups>
void direct(const Int8Task& task) {
  const LinearArgs& a = *task.args;
  const int64_t end = task.row + task.rows, apart = (task.rows + kLaneRows - 1) / kLaneRows;
  for (int64_t r = task.row; r < task.row + apart; ++r) {
    const EightRows rows(a.w, r, apart, end);
    for (int64_t m = 0; m < task.x.rows; ++m) {  // from the second on, W is in L1
      HWY_ALIGN float y[kLaneRows];
      store8(direct_rows<Groups>(a.w, rows, task.x, m), y);
      for (int64_t i = 0; i < kLaneRows && r + i * apart < end; ++i) {
        a.y[(task.m + m) * a.y_stride + r + i * apart] = y[i];
      }
    }
  }
}

// ---- blocked

// The panel: [groups][8 quads of columns], each the even columns of 16 rows as pairs of int16 and
// then the odd ones, and s_w [groups][16 rows].
struct Panel {
  int8_t* values;
  float* scales;
};

// Rows [row, row + 16) of W, groups [begin, begin + count); rows from `last` on repeat the last.
template <typename Groups>
void fill_panel(const Weight& w, int64_t row, int64_t last, int64_t begin, int64_t count,
                const Panel& panel) {
  const int64_t whole = w.cols / kIntGroup;
  for (int64_t v = 0; v < kPanelRows / kLaneRows; ++v) {
    const EightRows rows(w, row + v * kLaneRows, 1, last);
    for (int64_t k = 0; k < count; k += kLanes) {
      F8 scales[kLanes];
      const int64_t known = std::min(kLanes, count - k);
      load_scales(rows, begin + k, known, scales);
      for (int64_t i = 0; i < known; ++i) {
        store8(scales[i], panel.scales + (k + i) * kPanelRows + v * kLaneRows);
      }
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t g = begin + k;
      I8x quads[kLaneRows];
      TAMIS_UNROLL for (int64_t i = 0; i < kLaneRows; ++i) {
        const int8_t* p = rows.values[i] + g * Groups::kBytes;
        hwy::Prefetch(p + kPanelRows * w.row_bytes);  // of the next panel
        quads[i] = HWY_LIKELY(g < whole)
                       ? Groups::load_bytes(p)
                       : Groups::load_bytes(EdgeGroup<Groups>(p, w.cols - g * kIntGroup).bytes);
      }
      transpose8(quads);
      int8_t* out = panel.values + k * kGroupBytes + v * kLaneRows * 4;
      TAMIS_UNROLL for (int64_t i = 0; i < kQuads; ++i) {
        store_ints(even_bytes(quads[i]), out + i * kQuadBytes);
        store_ints(odd_bytes(quads[i]), out + i * kQuadBytes + kQuadBytes / 2);
      }
    }
  }
}

// The sums of one group for M rows of x, `stride` bytes apart, and 16 rows of W.
template <int M>
HWY_INLINE void multiply_pairs(const int8_t* HWY_RESTRICT w, const int8_t* HWY_RESTRICT x,
                               int64_t stride, I8x (*sum)[2]) {
  TAMIS_UNROLL for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = zero_ints();
  TAMIS_UNROLL for (int64_t s = 0; s < kQuads; ++s, x += 4) {
    TAMIS_UNROLL for (int64_t odd = 0; odd < 2; ++odd, w += kQuadBytes / 2) {
      const I8x w0 = load_ints(w), w1 = load_ints(w + kLaneRows * 4);
      TAMIS_UNROLL for (int m = 0; m < M; ++m) {
        const I8x xs = broadcast_pair(x + m * stride + odd * kGroupValues);
        sum[m][0] = add_pairs(xs, w0, sum[m][0]);
        sum[m][1] = add_pairs(xs, w1, sum[m][1]);
      }
    }
  }
}

HWY_INLINE void load_y(const float* y, int64_t valid, F8* out) {
  if (valid >= kPanelRows) {
    out[0] = load8(y);
    out[1] = load8(y + kLanes);
    return;
  }
  float edge[kPanelRows] = {};
  std::copy_n(y, valid, edge);
  out[0] = load8(edge);
  out[1] = load8(edge + kLanes);
}

HWY_INLINE void store_y(const F8* values, int64_t valid, float* y) {
  if (valid >= kPanelRows) {
    store8(values[0], y);
    store8(values[1], y + kLanes);
    return;
  }
  float edge[kPanelRows];
  store8(values[0], edge);
  store8(values[1], edge + kLanes);
  std::copy_n(edge, valid, y);
}

// M rows of x, `count` groups, 16 rows of W of which `valid` exist. y [M, valid] is set by the
// first chunk of columns and added to by the others.
template <int M>
void tile(const Panel& panel, const int8_t* x, const float* s_x, int64_t count, bool first,
          int64_t valid, float* y, int64_t y_stride) {
  HWY_ALIGN float acc[M][kPanelRows];  // the integer sums have the registers
  TAMIS_UNROLL for (int m = 0; m < M; ++m) {
    F8 values[2] = {zero8(), zero8()};
    if (!first) load_y(y + m * y_stride, valid, values);
    store8(values[0], acc[m]);
    store8(values[1], acc[m] + kLanes);
  }
  for (int64_t g = 0; g < count; ++g) {
    I8x sum[M][2];
    multiply_pairs<M>(panel.values + g * kGroupBytes, x + g * kIntGroup * 2, count * kIntGroup * 2,
                      sum);
    const float* s_w = panel.scales + g * kPanelRows;
    const F8 s_w0 = load8(s_w), s_w1 = load8(s_w + kLanes);
    TAMIS_UNROLL for (int m = 0; m < M; ++m) {
      const F8 s = set8(s_x[m * count + g]);
      float* to = acc[m];
      store8(fma8(to_floats(sum[m][0]), mul8(s_w0, s), load8(to)), to);
      store8(fma8(to_floats(sum[m][1]), mul8(s_w1, s), load8(to + kLanes)), to + kLanes);
    }
  }
  TAMIS_UNROLL for (int m = 0; m < M; ++m) {
    const F8 values[2] = {load8(acc[m]), load8(acc[m] + kLanes)};
    store_y(values, valid, y + m * y_stride);
  }
}

// Groups [begin, begin + count) of 16 rows of W from `row` on, times all rows of x of the task.
template <typename Groups>
void multiply_panel(const Int8Task& task, int64_t row, int64_t begin, int64_t count) {
  const LinearArgs& a = *task.args;
  const int64_t last = task.row + task.rows;
  const Panel panel = {reinterpret_cast<int8_t*>(task.panel), task.panel + kPanelFloats};
  fill_panel<Groups>(a.w, row, last, begin, count, panel);
  const int8_t* x = task.x.values + begin * task.x.rows * kIntGroup * 2;
  const float* s_x = task.x.scales + begin * task.x.rows;
  float* y = a.y + task.m * a.y_stride + row;
  for (int64_t m = 0; m < task.x.rows;) {
    const int64_t left = task.x.rows - m;
    if (left >= kTileX) {
      tile<kTileX>(panel, x, s_x, count, begin == 0, last - row, y, a.y_stride);
    } else if (left == 3) {
      tile<3>(panel, x, s_x, count, begin == 0, last - row, y, a.y_stride);
    } else if (left == 2) {
      tile<2>(panel, x, s_x, count, begin == 0, last - row, y, a.y_stride);
    } else {
      tile<1>(panel, x, s_x, count, begin == 0, last - row, y, a.y_stride);
    }
    const int64_t done = std::min(left, kTileX);
    m += done;
    x += done * count * kIntGroup * 2;
    s_x += done * count;
    y += done * a.y_stride;
  }
}

// With many rows of x a chunk of x stays in L2 while all rows of W pass; with few the rows of W are
// read from end to end.
template <typename Groups>
void blocked(const Int8Task& task) {
  const int64_t groups = group_count(task.args->w.cols), last = task.row + task.rows;
  const auto chunk = [&](int64_t row, int64_t begin) {
    multiply_panel<Groups>(task, row, begin, std::min(kChunkGroups, groups - begin));
  };
  if (task.x.rows <= kStreamRows) {
    for (int64_t row = task.row; row < last; row += kPanelRows) {
      for (int64_t g = 0; g < groups; g += kChunkGroups) chunk(row, g);
    }
    return;
  }
  for (int64_t g = 0; g < groups; g += kChunkGroups) {
    for (int64_t row = task.row; row < last; row += kPanelRows) chunk(row, g);
  }
}

template <typename Groups>
void run(const Int8Task& task) {
  task.panel == nullptr ? direct<Groups>(task) : blocked<Groups>(task);
}

void int8_task(const Int8Task& task) {
  task.args->w.dtype == DType::kI8 ? run<I8Groups>(task) : run<I4Groups>(task);
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {

HWY_EXPORT(int8_task);
HWY_EXPORT(quantise_task);

void run_quantise_task(const QuantiseTask& task) { HWY_DYNAMIC_DISPATCH(quantise_task)(task); }
void run_int8_task(const Int8Task& task) { HWY_DYNAMIC_DISPATCH(int8_task)(task); }

}  // namespace tamis
#endif  // HWY_ONCE
