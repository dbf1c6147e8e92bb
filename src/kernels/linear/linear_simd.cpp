// linear with Highway. Two paths give the same bits (linear.h states the order of the sum):
//
// direct, m <= 8 rows of x: converts W in registers; 4 rows of W and 1 or 2 of x, or 3 of W and 4
//   of x, are in flight, so that the latency of fma (4 cycles, 2 a cycle) is covered and a loaded x
//   serves several rows. The rows in flight are a quarter (or third) of the task apart: each reads
//   one contiguous stream, which the machine's own prefetcher follows; four rows side by side are
//   streams that end after a row. Bound by the bandwidth of W while m is small.
// blocked, m > 8: packs [132 rows of x x 512 columns] once (264 KiB, stays in L2), then converts W
//   to float 8 rows at a time (16 KiB, stays in L1) and multiplies in tiles of 3 rows of x and 4 of
//   W along the columns: 12 accumulators, 3 registers of x and 1 of W fill the 16 registers of
//   AVX2; 7 loads for 12 fma. x streams from L2 at 6 KiB for every 768 cycles. Bound by fma.
//
// Tasks are blocks of rows of W (and, in the blocked path, of x): outputs only, so threads do not
// change bits.
#include <algorithm>
#include <cstring>
#include <new>

#include "kernels/linear/linear_impl.h"
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear/linear_simd.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/cache_control.h>

#include "kernels/simd/rows-inl.h"

#ifndef TAMIS_LINEAR_SIMD_ONCE_
#define TAMIS_LINEAR_SIMD_ONCE_
namespace tamis {
namespace {

constexpr int64_t kChunk = 512;         // columns summed before the chunks are added up
constexpr int64_t kQuadRows = 4;        // rows of W in a register tile
constexpr int64_t kPanelRows = 8;       // rows of W converted at a time
constexpr int64_t kTileX = 3;           // rows of x in a register tile
constexpr int64_t kBlockX = 132;        // most rows of x of a task
constexpr int64_t kDirectRows = 8;      // most rows of x of the direct path
constexpr int64_t kTaskBytes = 131072;  // weights of a direct task
constexpr int64_t kTaskUnit = 12;       // rows of W of a direct task are a multiple
constexpr int64_t kAhead = 512;         // bytes of W fetched ahead in the direct path
static_assert(kPanelRows % kQuadRows == 0 && kBlockX % kTileX == 0);

// Rows [row, row + rows) of W times rows [m, m + count) of x.
struct LinearTask {
  const LinearArgs* args;
  int64_t row, rows, m, count;
  float* packed;  // direct: x as pack_direct leaves it; blocked: room for kBlockX * kChunk floats
  float* panel;   // blocked: room for kPanelRows * kChunk floats
};

}  // namespace
}  // namespace tamis
#endif  // TAMIS_LINEAR_SIMD_ONCE_

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_linear_task(const LinearTask&) { throw_no_vectors(); }
#else

// ---- direct

// One step of 32 columns of R rows of W with M rows of x: M + R loads for M * R fma, and fma that
// wait for each other (4 cycles) stand far apart.
template <typename Row, int M, int R>
HWY_INLINE void direct_step(const Row* rows, int64_t c, const F8* scale,
                            const float* HWY_RESTRICT x, F8* acc) {
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
    F8 w[R];
    TAMIS_UNROLL for (int i = 0; i < R; ++i) w[i] = rows[i].get(c, j, scale[i]);
    TAMIS_UNROLL for (int m = 0; m < M; ++m) {
      const F8 xs = load8(x + (j * M + m) * kLanes);
      TAMIS_UNROLL for (int i = 0; i < R; ++i) acc[i * M + m] = fma8(w[i], xs, acc[i * M + m]);
    }
  }
}

// The same for one row and columns that its reader does not take.
template <int M>
HWY_INLINE void special_step(const Weight& w, int64_t r, int64_t c, int64_t count, const float* x,
                             F8* acc) {
  F8 values[kStepF8];
  special32(w, r, c, count, values);
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
    TAMIS_UNROLL for (int m = 0; m < M; ++m) {
      acc[m] = fma8(values[j], load8(x + (j * M + m) * kLanes), acc[m]);
    }
  }
}

// Columns [begin, end) of one chunk of the rows r[0..R) of W; the sums, four at a time, to acc.
template <typename Row, int M, int R>
HWY_INLINE void direct_chunk(const Weight& w, Row* rows, const int64_t* r, int64_t begin,
                             int64_t end, const float* x, F8* acc) {
  const int64_t whole = w.cols / kStep * kStep;
  TAMIS_UNROLL for (int i = 0; i < R * M; ++i) acc[i] = zero8();
  for (int64_t c = begin; c < end; c += kStep, x += M * kStep) {
    F8 scale[R];
    bool special = c >= whole;
    if (HWY_LIKELY(!special)) {
      TAMIS_UNROLL for (int i = 0; i < R; ++i) {
        special |= rows[i].prepare(c, scale[i]);
        prefetch32<Row::kBits>(rows[i].p, c, kAhead);
      }
    }
    if (HWY_LIKELY(!special)) {
      direct_step<Row, M, R>(rows, c, scale, x, acc);
      continue;
    }
    TAMIS_UNROLL for (int i = 0; i < R; ++i) {
      special_step<M>(w, r[i], c, std::min(kStep, end - c), x, acc + i * M);
    }
  }
}

// Rows row, row + apart, .. of W, those that the task has, times M rows of x from row m on, packed.
template <typename Row, int M, int R>
HWY_INLINE void direct_rows(const LinearTask& task, int64_t row, int64_t apart, int64_t m,
                            const float* packed) {
  static_assert(R * M % 4 == 0, "sums are taken four at a time");
  const LinearArgs& a = *task.args;
  const int64_t end = task.row + task.rows;
  int64_t r[R];
  Row rows[R];
  TAMIS_UNROLL for (int i = 0; i < R; ++i) {
    r[i] = std::min(row + i * apart, end - 1);
    rows[i] = Row(a.w, r[i]);
  }
  HWY_ALIGN float total[R * M] = {};
  for (int64_t begin = 0; begin < a.w.cols; begin += kChunk) {
    F8 acc[R * M];
    direct_chunk<Row, M, R>(a.w, rows, r, begin, std::min(begin + kChunk, a.w.cols),
                            packed + begin * M, acc);
    TAMIS_UNROLL for (int i = 0; i < R * M; i += 4) {
      const QuadTag q;
      Quad sum = sum4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
      if (begin != 0) sum = hn::Add(hn::Load(q, total + i), sum);
      hn::Store(sum, q, total + i);
    }
  }
  for (int64_t i = 0; i < R && row + i * apart < end; ++i) {
    for (int64_t k = 0; k < std::min<int64_t>(M, a.m - m); ++k) {
      a.y[(m + k) * a.y_stride + row + i * apart] = total[i * M + k];
    }
  }
}

// With more rows of x than M, the same rows of W are read again while they are in L1.
template <typename Row, int M, int R>
void direct(const LinearTask& task) {
  static_assert(kTaskUnit % R == 0);
  const int64_t padded = (task.args->w.cols + kStep - 1) / kStep * kStep;
  const int64_t apart = (task.rows + R - 1) / R;
  for (int64_t r = task.row; r < task.row + apart; ++r) {
    for (int64_t m = 0; m < task.args->m; m += M) {
      direct_rows<Row, M, R>(task, r, apart, m, task.packed + m * padded);
    }
  }
}

// ---- blocked

// Rows [row, row + kPanelRows) of W as [rows / 4][steps of 8 columns][4 rows][8 columns]; rows from
// `last` on are zero.
template <typename Row>
void fill_panel(const Weight& w, int64_t row, int64_t last, int64_t begin, int64_t cols,
                int64_t steps, float* panel) {
  constexpr int64_t kStride = kQuadRows * kLanes;
  for (int64_t i = 0; i < kPanelRows; ++i) {
    float* out = panel + i / kQuadRows * steps * kStride + i % kQuadRows * kLanes;
    if (row + i >= last) {
      for (int64_t s = 0; s < steps; ++s) store8(zero8(), out + s * kStride);
      continue;
    }
    Row reader(w, row + i);
    F8 v[kStepF8];
    int64_t c = 0;
    for (; c + kStep <= cols; c += kStep) {
      load32(w, reader, row + i, begin + c, v);
      prefetch32<Row::kBits>(reader.p, begin + c, kPanelRows * w.row_bytes);
      TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
        store8(v[j], out + (c / kLanes + j) * kStride);
      }
    }
    if (c == cols) continue;
    special32(w, row + i, begin + c, cols - c, v);
    for (int64_t j = 0; j < kStepF8; ++j) store8(v[j], out + (c / kLanes + j) * kStride);
  }
}

// One row of x into a group of `stride / 8` rows: [steps of 8 columns][rows][8 columns], zeros
// after the end. The row `next` floats further on is fetched meanwhile.
void pack_row(const float* x, int64_t next, int64_t cols, int64_t steps, int64_t stride,
              float* out) {
  constexpr int64_t kLineVectors = 2;
  const int64_t whole = cols / kLanes;
  for (int64_t s = 0; s < whole; ++s) {
    if (s % kLineVectors == 0) hwy::Prefetch(x + next + s * kLanes);
    store8(load8(x + s * kLanes), out + s * stride);
  }
  if (whole == steps) return;
  float tail[kLanes] = {};
  std::copy(x + whole * kLanes, x + cols, tail);
  store8(load8(tail), out + whole * stride);
  for (int64_t s = whole + 1; s < steps; ++s) store8(zero8(), out + s * stride);
}

// One register tile: G rows of x, 4 rows of W. y [G, valid] is set by the first chunk of columns
// and added to by the others.
template <int G>
HWY_INLINE void tile(const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, int64_t steps,
                     bool first, int64_t valid, float* y, int64_t y_stride) {
  F8 acc[G][kQuadRows];
  TAMIS_UNROLL for (int g = 0; g < G; ++g) {
    hwy::Prefetch(y + g * y_stride);
    TAMIS_UNROLL for (int j = 0; j < kQuadRows; ++j) acc[g][j] = zero8();
  }
  for (int64_t s = 0; s < steps; ++s, x += G * kLanes, w += kQuadRows * kLanes) {
    F8 xs[G];
    TAMIS_UNROLL for (int g = 0; g < G; ++g) xs[g] = load8(x + g * kLanes);
    TAMIS_UNROLL for (int j = 0; j < kQuadRows; ++j) {
      const F8 ws = load8(w + j * kLanes);
      TAMIS_UNROLL for (int g = 0; g < G; ++g) acc[g][j] = fma8(ws, xs[g], acc[g][j]);
    }
  }
  TAMIS_UNROLL for (int g = 0; g < G; ++g, y += y_stride) {
    const QuadTag q;
    Quad sum = sum4(acc[g][0], acc[g][1], acc[g][2], acc[g][3]);
    if (valid >= kQuadRows) {
      if (!first) sum = hn::Add(hn::LoadU(q, y), sum);
      hn::StoreU(sum, q, y);
      continue;
    }
    HWY_ALIGN float values[kQuadRows];
    hn::Store(sum, q, values);
    for (int64_t j = 0; j < valid; ++j) y[j] = first ? values[j] : y[j] + values[j];
  }
}

// Groups of 3 rows of x, and of 2 where 3 does not divide: a tile of 1 row would have too few
// accumulators to hide the latency of fma.
struct XGroups {
  int64_t threes, twos, ones;
  explicit XGroups(int64_t m) {
    ones = m == 1 ? 1 : 0;
    twos = ones != 0 ? 0 : (3 - m % 3) % 3;
    threes = (m - 2 * twos - ones) / 3;
  }
  int64_t count() const { return threes + twos + ones; }
  int64_t size(int64_t g) const { return g < threes ? 3 : ones != 0 ? 1 : 2; }
  int64_t begin(int64_t g) const { return g < threes ? 3 * g : 3 * threes + 2 * (g - threes); }
};

// The rows of x of one task, columns [begin, begin + cols), group after group.
void pack_x(const LinearTask& task, const XGroups& groups, int64_t begin, int64_t cols,
            int64_t steps) {
  const LinearArgs& a = *task.args;
  for (int64_t g = 0; g < groups.count(); ++g) {
    const int64_t size = groups.size(g), row = groups.begin(g);
    for (int64_t i = 0; i < size; ++i) {
      pack_row(a.x + (task.m + row + i) * a.x_stride + begin, a.x_stride, cols, steps,
               size * kLanes, task.packed + (row * steps + i) * kLanes);
    }
  }
}

// All rows of x of the task times kPanelRows rows of W, of which `valid` exist.
void multiply_panel(const LinearTask& task, const XGroups& groups, int64_t row, int64_t valid,
                    int64_t steps, bool first) {
  const LinearArgs& a = *task.args;
  const int64_t count = groups.count();
  for (int64_t g = 0; g < count; ++g) {
    const int64_t size = groups.size(g), m = groups.begin(g);
    const float* x = task.packed + m * steps * kLanes;
    for (int64_t q = 0; q < valid; q += kQuadRows) {
      const float* w = task.panel + q * steps * kLanes;
      float* y = a.y + (task.m + m) * a.y_stride + row + q;
      if (size == 3) {
        tile<3>(x, w, steps, first, valid - q, y, a.y_stride);
      } else if (size == 2) {
        tile<2>(x, w, steps, first, valid - q, y, a.y_stride);
      } else {
        tile<1>(x, w, steps, first, valid - q, y, a.y_stride);
      }
    }
  }
}

template <typename Row>
void blocked(const LinearTask& task) {
  const Weight& w = task.args->w;
  const XGroups groups(task.count);
  const int64_t last = task.row + task.rows;
  for (int64_t begin = 0; begin < w.cols; begin += kChunk) {
    const int64_t cols = std::min(kChunk, w.cols - begin);
    const int64_t steps = (cols + kStep - 1) / kStep * kStepF8;
    pack_x(task, groups, begin, cols, steps);
    for (int64_t row = task.row; row < last; row += kPanelRows) {
      fill_panel<Row>(w, row, last, begin, cols, steps, task.panel);
      multiply_panel(task, groups, row, std::min(kPanelRows, last - row), steps, begin == 0);
    }
  }
}

template <typename Row>
void run(const LinearTask& task) {
  const int64_t m = task.args->m;
  if (m > kDirectRows) return blocked<Row>(task);
  if (m > 2) return direct<Row, 4, 3>(task);
  if (m == 2) return direct<Row, 2, 4>(task);
  direct<Row, 1, 4>(task);
}

void run_linear_task(const LinearTask& task) {
  with_row_reader(task.args->w, [&]<typename Row>() { run<Row>(task); });
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(run_linear_task);

// How one product is cut: its tasks are numbered from first_task, blocks of x fastest, so that a
// block of W is read again while it is still in the cache.
struct Cut {
  int64_t first_task, rows, x_rows, x_blocks, tasks;
  int64_t packed;  // direct: where its x begins among all packed x, floats
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `total` in the fewest parts of at most about `wanted`, all nearly the same size, multiples of
// `unit`.
int64_t even_part(int64_t total, int64_t wanted, int64_t unit) {
  return ceil_div(ceil_div(total, ceil_div(total, wanted)), unit) * unit;
}

Cut cut_product(const LinearArgs& a, int64_t blocked_rows, int64_t first_task) {
  if (a.m == 0 || a.w.rows == 0 || a.w.cols == 0) return {first_task, 1, 1, 1, 0, 0};
  const bool direct = a.m <= kDirectRows;
  const int64_t wanted = direct ? std::max(kTaskUnit, kTaskBytes / a.w.row_bytes) : blocked_rows;
  const int64_t rows = even_part(a.w.rows, wanted, direct ? kTaskUnit : kPanelRows);
  const int64_t x_rows = direct ? a.m : even_part(a.m, kBlockX, kTileX);
  const int64_t x_blocks = ceil_div(a.m, x_rows);
  return {first_task, rows, x_rows, x_blocks, ceil_div(a.w.rows, rows) * x_blocks, 0};
}

// Rows of W in a task of the blocked path: many, because x is packed once per task, but not so
// many that threads are left without a share.
int64_t rows_per_task(std::span<const LinearArgs> args, int threads) {
  constexpr int64_t kTasksPerThread = 4, kFewest = 64, kMost = 512;
  int64_t rows = 0;
  for (const LinearArgs& a : args) {
    if (a.m > kDirectRows) rows += a.w.rows * ceil_div(a.m, kBlockX);
  }
  return std::clamp(ceil_div(rows, threads * kTasksPerThread), kFewest, kMost);
}

void fill_zero(const LinearArgs& a) {
  for (int64_t m = 0; m < a.m; ++m) std::fill_n(a.y + m * a.y_stride, a.w.rows, 0.0f);
}

// Rows of x that run() gives the direct path at a time.
int64_t rows_at_once(int64_t m) { return m > 2 ? 4 : m; }

int64_t padded_cols(int64_t cols) {
  constexpr int64_t kStepColumns = 32;
  return ceil_div(cols, kStepColumns) * kStepColumns;
}

int64_t direct_floats(const LinearArgs& a) {
  const int64_t unit = rows_at_once(a.m);
  return ceil_div(a.m, unit) * unit * padded_cols(a.w.cols);
}

bool same_x(const LinearArgs& a, const LinearArgs& b) {
  return a.x == b.x && a.m == b.m && a.x_stride == b.x_stride && a.w.cols == b.w.cols;
}

// x of the direct path as [groups of rows][steps of 8 columns][rows of a group][8 columns], zeros
// where there is nothing: one stream, whatever the stride of x (a power of two would put its rows
// into the same cache sets).
void pack_direct(const LinearArgs& a, float* out) {
  constexpr int64_t kWidth = 8;
  const int64_t unit = rows_at_once(a.m), stride = unit * kWidth, whole = a.w.cols / kWidth;
  if (direct_floats(a) != a.m * a.w.cols) std::fill_n(out, direct_floats(a), 0.0f);
  for (int64_t m = 0; m < a.m; ++m) {
    const float* x = a.x + m * a.x_stride;
    float* to = out + m / unit * unit * padded_cols(a.w.cols) + m % unit * kWidth;
    for (int64_t s = 0; s < whole; ++s) {
      std::memcpy(to + s * stride, x + s * kWidth, kWidth * sizeof(float));
    }
    std::copy(x + whole * kWidth, x + a.w.cols, to + whole * stride);
  }
}

// Packs the x of every direct product; products of the same x, one after the other, share it.
float* pack_all_direct(KernelContext& context, std::span<const LinearArgs> args, Cut* cuts) {
  int64_t floats = 0, last = -1;
  const auto products = static_cast<int64_t>(args.size());
  for (int64_t i = 0; i < products; ++i) {
    const LinearArgs& a = args[static_cast<size_t>(i)];
    if (a.m > kDirectRows || cuts[i].tasks == 0) continue;
    const bool again = last >= 0 && same_x(args[static_cast<size_t>(last)], a);
    cuts[i].packed = again ? cuts[last].packed : floats;
    if (!again) floats += direct_floats(a);
    last = i;
  }
  float* packed = context.scratch(0, 2, floats);
  int64_t done = 0;
  for (int64_t i = 0; i < products; ++i) {
    const LinearArgs& a = args[static_cast<size_t>(i)];
    if (a.m > kDirectRows || cuts[i].tasks == 0 || cuts[i].packed < done) continue;
    pack_direct(a, packed + cuts[i].packed);
    done = cuts[i].packed + direct_floats(a);
  }
  return packed;
}

}  // namespace

void linears_simd(KernelContext& context, const std::span<const LinearArgs>& args) {
  const auto products = static_cast<int64_t>(args.size());
  const int64_t blocked_rows = rows_per_task(args, context.pool().num_threads());
  constexpr auto kCutFloats = static_cast<int64_t>(sizeof(Cut) / sizeof(float));
  auto* cuts = reinterpret_cast<Cut*>(context.scratch(0, 3, (products + 1) * kCutFloats));
  int64_t tasks = 0;
  for (int64_t i = 0; i < products; ++i) {
    const LinearArgs& a = args[static_cast<size_t>(i)];
    if (a.w.cols == 0) fill_zero(a);
    tasks += (new (cuts + i) Cut(cut_product(a, blocked_rows, tasks)))->tasks;
  }
  float* direct_x = pack_all_direct(context, args, cuts);
  context.pool().run(tasks, [&](int64_t index, int thread) {
    const auto starts_after = [](int64_t task, const Cut& c) { return task < c.first_task; };
    const Cut& cut = *(std::upper_bound(cuts, cuts + products, index, starts_after) - 1);
    const LinearArgs& a = args[static_cast<size_t>(&cut - cuts)];
    const int64_t row = (index - cut.first_task) / cut.x_blocks * cut.rows;
    const int64_t m = (index - cut.first_task) % cut.x_blocks * cut.x_rows;
    LinearTask task = {&a,
                       row,
                       std::min(cut.rows, a.w.rows - row),
                       m,
                       std::min(cut.x_rows, a.m - m),
                       direct_x + cut.packed,
                       nullptr};
    if (a.m > kDirectRows) {
      task.packed = context.scratch(thread, 0, kBlockX * kChunk);
      task.panel = context.scratch(thread, 1, kPanelRows * kChunk);
    }
    HWY_DYNAMIC_DISPATCH(run_linear_task)(task);
  });
}

}  // namespace tamis
#endif  // HWY_ONCE
