// linear with Highway. Two paths give the same bits (linear.h states the order of the sum):
//
// direct, m <= 8 rows of x: reads W once, converts in registers, 8 accumulators at least so that
//   the latency of fma (4 cycles, 2 a cycle) is covered. Bound by the bandwidth of W.
// panel, m > 8: converts [96 rows of W x 512 columns] to float once (192 KiB, in L2) and multiplies
//   it with 3 x 4 tiles of x and W rows along the columns: 12 accumulators, 3 registers of x and 1
//   of W fill the 16 registers of AVX2; 7 loads for 12 fma. 6 rows of x (12 KiB) stay in L1 while
//   the panel streams past (8 KiB for every 768 cycles). Bound by fma.
//
// Tasks are blocks of rows of W (and, in the panel path, of x): outputs only, so threads do not
// change bits.
#include <algorithm>
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

constexpr int64_t kChunk = 512;        // columns summed before the chunks are added up
constexpr int64_t kQuadRows = 4;       // rows of W in a register tile
constexpr int64_t kTileX = 3;          // rows of x in a register tile
constexpr int64_t kDirectRows = 8;     // most rows of x of the direct path
constexpr int64_t kPanelRows = 96;     // rows of W in a panel
constexpr int64_t kPanelX = 512;       // most rows of x of one task
constexpr int64_t kTaskBytes = 32768;  // weights of a direct task
static_assert(kPanelRows % kQuadRows == 0);

// Rows [row, row + rows) of W times rows [m, m + count) of x.
struct LinearTask {
  const LinearArgs* args;
  int64_t row, rows, m, count;
  float* panel;   // kPanelRows * kChunk floats
  float* packed;  // 2 * kTileX * kChunk floats
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

// Up to M rows of x; the last is repeated where there are fewer. tail holds the columns after the
// last whole step, padded with zeros.
template <int M>
struct XRows {
  const float* row[M];
  float tail[M][kStep];
};

template <int M>
XRows<M> x_rows(const LinearArgs& a) {
  XRows<M> x = {};
  const int64_t whole = a.w.cols / kStep * kStep;
  for (int64_t m = 0; m < M; ++m) {
    x.row[m] = a.x + std::min(m, a.m - 1) * a.x_stride;
    std::copy(x.row[m] + whole, x.row[m] + a.w.cols, x.tail[m]);
  }
  return x;
}

template <typename Row, int M, int R>
HWY_INLINE void direct_chunk(const LinearArgs& a, const Row* rows, const int64_t* r,
                             const XRows<M>& x, int64_t begin, int64_t ahead, F8* acc) {
  const int64_t end = std::min(begin + kChunk, a.w.cols);
  const int64_t whole = begin + (end - begin) / kStep * kStep;
  TAMIS_UNROLL for (int i = 0; i < R * M; ++i) acc[i] = zero8();
  for (int64_t c = begin; c < whole; c += kStep) {
    TAMIS_UNROLL for (int i = 0; i < R; ++i) {
      F8 w[kStepF8];
      rows[i].load32(c, w);
      rows[i].prefetch(c, ahead);
      TAMIS_UNROLL for (int j = 0; j < kStepF8; ++j) {
        TAMIS_UNROLL for (int m = 0; m < M; ++m) {
          acc[i * M + m] = fma8(w[j], load8(x.row[m] + c + j * kLanes), acc[i * M + m]);
        }
      }
    }
  }
  if (whole == end) return;
  for (int i = 0; i < R; ++i) {
    F8 w[kStepF8];
    const int64_t vectors = load_tail(a.w, r[i], whole, end - whole, w);
    for (int64_t j = 0; j < vectors; ++j) {
      for (int m = 0; m < M; ++m) {
        acc[i * M + m] = fma8(w[j], load8(x.tail[m] + j * kLanes), acc[i * M + m]);
      }
    }
  }
}

// Rows row .. row + R - 1 of W, fewer at the end of the matrix.
template <typename Row, int M, int R>
void direct_rows(const LinearArgs& a, int64_t row, const XRows<M>& x) {
  static_assert(R * M % 4 == 0, "sums are taken four at a time");
  const int64_t count = std::min<int64_t>(R, a.w.rows - row);
  Row rows[R];
  int64_t r[R];
  for (int i = 0; i < R; ++i) {
    r[i] = row + std::min<int64_t>(i, count - 1);
    rows[i] = Row(a.w, r[i]);
  }
  const int64_t ahead = R * a.w.row_bytes;
  HWY_ALIGN float total[R * M] = {};
  for (int64_t begin = 0; begin < a.w.cols; begin += kChunk) {
    F8 acc[R * M];
    direct_chunk<Row, M, R>(a, rows, r, x, begin, ahead, acc);
    TAMIS_UNROLL for (int i = 0; i < R * M; i += 4) {
      const QuadTag q;
      Quad sum = sum4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
      if (begin != 0) sum = hn::Add(hn::Load(q, total + i), sum);
      hn::Store(sum, q, total + i);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t m = 0; m < std::min<int64_t>(M, a.m); ++m) {
      a.y[m * a.y_stride + row + i] = total[i * M + m];
    }
  }
}

template <typename Row, int M, int R>
void direct(const LinearTask& task) {
  const XRows<M> x = x_rows<M>(*task.args);
  for (int64_t r = task.row; r < task.row + task.rows; r += R) {
    direct_rows<Row, M, R>(*task.args, r, x);
  }
}

// ---- panel

// Panel layout: [rows / 4][steps of 8 columns][4 rows][8 columns], absent rows zero.
template <typename Row>
void fill_panel(const LinearTask& task, int64_t begin, int64_t cols, int64_t steps) {
  const Weight& w = task.args->w;
  constexpr int64_t kStride = kQuadRows * kLanes;
  const int64_t padded = (task.rows + kQuadRows - 1) / kQuadRows * kQuadRows;
  for (int64_t i = 0; i < padded; ++i) {
    float* out = task.panel + i / kQuadRows * steps * kStride + i % kQuadRows * kLanes;
    if (i >= task.rows) {
      for (int64_t s = 0; s < steps; ++s) store8(zero8(), out + s * kStride);
      continue;
    }
    const Row row(w, task.row + i);
    F8 v[kStepF8];
    int64_t c = 0;
    for (; c + kStep <= cols; c += kStep) {
      row.load32(begin + c, v);
      TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
        store8(v[j], out + (c / kLanes + j) * kStride);
      }
    }
    if (c == cols) continue;
    const int64_t vectors = load_tail(w, task.row + i, begin + c, cols - c, v);
    for (int64_t j = 0; j < vectors; ++j) store8(v[j], out + (c / kLanes + j) * kStride);
  }
}

// `count` rows of x from row m on as [steps of 8 columns][count][8 columns], zeros after the end.
void pack_x(const LinearArgs& a, int64_t m, int64_t count, int64_t begin, int64_t cols,
            float* out) {
  const int64_t stride = count * kLanes, whole = cols / kLanes;
  for (int64_t i = 0; i < count; ++i, out += kLanes) {
    const float* x = a.x + (m + i) * a.x_stride + begin;
    for (int64_t s = 0; s < whole; ++s) store8(load8(x + s * kLanes), out + s * stride);
    if (cols % kLanes == 0) continue;
    float tail[kLanes] = {};
    std::copy(x + whole * kLanes, x + cols, tail);
    store8(load8(tail), out + whole * stride);
  }
}

// One register tile: G rows of x, 4 rows of W. y [G, valid] is set by the first chunk of columns
// and added to by the others.
template <int G>
HWY_INLINE void tile(const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, int64_t steps,
                     bool first, int64_t valid, float* y, int64_t y_stride) {
  F8 acc[G][kQuadRows];
  TAMIS_UNROLL for (int g = 0; g < G; ++g) {
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
    if (valid == kQuadRows) {
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

void multiply_group(const LinearTask& task, int64_t size, int64_t m, const float* x, const float* w,
                    int64_t row, int64_t steps, bool first) {
  const LinearArgs& a = *task.args;
  float* y = a.y + m * a.y_stride + row;
  const int64_t valid = std::min(kQuadRows, task.row + task.rows - row);
  if (size == 3) return tile<3>(x, w, steps, first, valid, y, a.y_stride);
  if (size == 2) return tile<2>(x, w, steps, first, valid, y, a.y_stride);
  tile<1>(x, w, steps, first, valid, y, a.y_stride);
}

template <typename Row>
void panel(const LinearTask& task) {
  const LinearArgs& a = *task.args;
  const XGroups groups(task.count);
  constexpr int64_t kPackedGroup = kTileX * kChunk;
  for (int64_t begin = 0; begin < a.w.cols; begin += kChunk) {
    const int64_t cols = std::min(kChunk, a.w.cols - begin);
    const int64_t steps = (cols + kLanes - 1) / kLanes;
    fill_panel<Row>(task, begin, cols, steps);
    for (int64_t g = 0; g < groups.count(); g += 2) {
      const int64_t last = std::min(g + 2, groups.count());
      for (int64_t i = g; i < last; ++i) {
        pack_x(a, task.m + groups.begin(i), groups.size(i), begin, cols,
               task.packed + (i - g) * kPackedGroup);
      }
      for (int64_t r = 0; r < task.rows; r += kQuadRows) {
        for (int64_t i = g; i < last; ++i) {
          multiply_group(task, groups.size(i), task.m + groups.begin(i),
                         task.packed + (i - g) * kPackedGroup, task.panel + r * steps * kLanes,
                         task.row + r, steps, begin == 0);
        }
      }
    }
  }
}

template <typename Row>
void run(const LinearTask& task) {
  const int64_t m = task.args->m;
  if (m > kDirectRows) return panel<Row>(task);
  if (m > 4) return direct<Row, 8, 1>(task);
  if (m > 2) return direct<Row, 4, 2>(task);
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

// How one product is cut: its tasks are numbered from first_task, rows of W fastest.
struct Cut {
  int64_t first_task, rows, x_rows, row_blocks;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Blocks of W of about `wanted` rows, all nearly the same size, in whole quads.
int64_t even_rows(int64_t rows, int64_t wanted) {
  return round_up(ceil_div(rows, ceil_div(rows, wanted)), kQuadRows);
}

Cut cut_product(const LinearArgs& a, int64_t panel_rows, int64_t first_task) {
  if (a.m <= kDirectRows) {
    const int64_t rows = std::max(kQuadRows, kTaskBytes / std::max<int64_t>(1, a.w.row_bytes));
    const int64_t even = even_rows(a.w.rows, rows);
    return {first_task, even, a.m, ceil_div(a.w.rows, even)};
  }
  const int64_t rows = even_rows(a.w.rows, panel_rows);
  return {first_task, rows, ceil_div(a.m, ceil_div(a.m, kPanelX)), ceil_div(a.w.rows, rows)};
}

// Rows of W in a panel: as many as fit, fewer when that would leave threads without a share.
int64_t rows_per_panel(std::span<const LinearArgs> args, int threads) {
  constexpr int64_t kTasksPerThread = 4, kFewest = 24;
  int64_t rows = 0;
  for (const LinearArgs& a : args) {
    if (a.m > kDirectRows) rows += a.w.rows * ceil_div(a.m, kPanelX);
  }
  return std::clamp(ceil_div(rows, threads * kTasksPerThread), kFewest, kPanelRows);
}

void fill_zero(const LinearArgs& a) {
  for (int64_t m = 0; m < a.m; ++m) std::fill_n(a.y + m * a.y_stride, a.w.rows, 0.0f);
}

}  // namespace

void linears_simd(KernelContext& context, const std::span<const LinearArgs>& args) {
  const auto products = static_cast<int64_t>(args.size());
  const int64_t panel_rows = rows_per_panel(args, context.pool().num_threads());
  constexpr auto kCutFloats = static_cast<int64_t>(sizeof(Cut) / sizeof(float));
  auto* cuts = reinterpret_cast<Cut*>(context.scratch(0, 3, (products + 1) * kCutFloats));
  int64_t tasks = 0;
  for (int64_t i = 0; i < products; ++i) {
    const LinearArgs& a = args[static_cast<size_t>(i)];
    const bool empty = a.m == 0 || a.w.rows == 0 || a.w.cols == 0;
    if (a.w.cols == 0) fill_zero(a);
    const Cut* cut =
        new (cuts + i) Cut(empty ? Cut{tasks, 1, 1, 0} : cut_product(a, panel_rows, tasks));
    if (!empty) tasks += cut->row_blocks * ceil_div(a.m, cut->x_rows);
  }
  context.pool().run(tasks, [&](int64_t index, int thread) {
    const Cut* cut = std::upper_bound(cuts, cuts + products, index,
                                      [](int64_t t, const Cut& c) { return t < c.first_task; }) -
                     1;
    const LinearArgs& a = args[static_cast<size_t>(cut - cuts)];
    const int64_t row = (index - cut->first_task) % cut->row_blocks * cut->rows;
    const int64_t m = (index - cut->first_task) / cut->row_blocks * cut->x_rows;
    const bool direct = a.m <= kDirectRows;
    const LinearTask task = {&a,
                             row,
                             std::min(cut->rows, a.w.rows - row),
                             m,
                             std::min(cut->x_rows, a.m - m),
                             direct ? nullptr : context.scratch(thread, 0, kPanelRows * kChunk),
                             direct ? nullptr : context.scratch(thread, 1, 2 * kTileX * kChunk)};
    HWY_DYNAMIC_DISPATCH(run_linear_task)(task);
  });
}

}  // namespace tamis
#endif  // HWY_ONCE
