// per_head_linear with Highway. The forward direction is one linear a head. Transposed, a task is
// 128 columns of a head: 32 columns of all rows of W_h are converted to float (16 KiB at 128 rows,
// in L1), then tiles of 3 tokens x 32 columns run down the rows with 12 accumulators: 4 loads of W
// and 3 broadcasts of x for 12 fma. With one token the work is bound by the bandwidth of W, with
// many by fma. W is read across its rows, so the lines of the next 32 columns are fetched ahead.
#include <algorithm>

#include "kernels/per_head_linear/per_head_linear_impl.h"
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/per_head_linear/per_head_linear_simd.cpp"
#include <hwy/foreach_target.h>
//
#include "kernels/simd/rows-inl.h"

#ifndef TAMIS_PER_HEAD_LINEAR_SIMD_ONCE_
#define TAMIS_PER_HEAD_LINEAR_SIMD_ONCE_
namespace tamis {
namespace {

constexpr int64_t kPanelCols = 32;  // columns converted at a time, a step of the row readers
constexpr int64_t kTaskCols = 128;

// Columns [begin, end) of the transposed product of one head.
struct TransposedTask {
  const PerHeadLinearArgs* args;
  int64_t head, begin, end;
  float* panel;  // [rows, kPanelCols]
};

}  // namespace
}  // namespace tamis
#endif  // TAMIS_PER_HEAD_LINEAR_SIMD_ONCE_

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_transposed_task(const TransposedTask&) { throw_no_vectors(); }
#else

static_assert(kPanelCols == kStep && kTaskCols % kStep == 0);

template <typename Row>
void fill_panel(const TransposedTask& task, int64_t c, int64_t count) {
  const PerHeadLinearArgs& a = *task.args;
  const int64_t first = task.head * a.head_rows + a.row_offset;
  constexpr int64_t kNextColumns = kStep * Row::kBits / 8;
  for (int64_t r = 0; r < a.rows; ++r) {
    F8 v[kStepF8];
    if (count == kStep) {
      Row row(a.w, first + r);
      load32(a.w, row, first + r, c, v);
      prefetch32<Row::kBits>(row.p, c, kNextColumns);
    } else {
      special32(a.w, first + r, c, count, v);
    }
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
      store8(v[j], task.panel + r * kStep + j * kLanes);
    }
  }
}

// y[t, c .. c + count) for G tokens from t on: fma over the rows in order, from zero.
template <int G>
void tile(const TransposedTask& task, int64_t t, int64_t c, int64_t count) {
  const PerHeadLinearArgs& a = *task.args;
  const float* x[G];
  F8 acc[G][kStepF8];
  TAMIS_UNROLL for (int g = 0; g < G; ++g) {
    x[g] = a.x + (t + g) * a.x_token_stride + task.head * a.x_head_stride;
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) acc[g][j] = zero8();
  }
  const float* w = task.panel;
  for (int64_t r = 0; r < a.rows; ++r, w += kStep) {
    F8 xs[G];
    TAMIS_UNROLL for (int g = 0; g < G; ++g) xs[g] = set8(x[g][r]);
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
      const F8 ws = load8(w + j * kLanes);
      TAMIS_UNROLL for (int g = 0; g < G; ++g) acc[g][j] = fma8(ws, xs[g], acc[g][j]);
    }
  }
  TAMIS_UNROLL for (int g = 0; g < G; ++g) {
    float* y = a.y + (t + g) * a.y_token_stride + task.head * a.y_head_stride + c;
    float values[kStep];
    float* out = count == kStep ? y : values;
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) store8(acc[g][j], out + j * kLanes);
    if (out != y) std::copy_n(values, count, y);
  }
}

// The step of single() at the end of a row, or with fewer rows: rows [r, r + rows), columns [c, c +
// 32) as far as they go.
template <typename Row>
void single_edge(const TransposedTask& task, Row* row, int64_t r, int64_t rows, int64_t c) {
  const PerHeadLinearArgs& a = *task.args;
  const int64_t first = task.head * a.head_rows + a.row_offset;
  const int64_t count = std::min(kStep, task.end - c);
  const float* x = a.x + task.head * a.x_head_stride;
  float* y = a.y + task.head * a.y_head_stride + c;
  float edge[kStep] = {};
  std::copy_n(y, count, edge);
  F8 acc[kStepF8];
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) acc[j] = load8(edge + j * kLanes);
  for (int64_t i = 0; i < rows; ++i) {
    F8 v[kStepF8];
    if (count == kStep) {
      load32(a.w, row[i], first + r + i, c, v);
    } else {
      special32(a.w, first + r + i, c, count, v);
    }
    const F8 xs = set8(x[r + i]);
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) acc[j] = fma8(v[j], xs, acc[j]);
  }
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) store8(acc[j], edge + j * kLanes);
  std::copy_n(edge, count, y);
}

// One token: W is read once, so its rows are read as they lie, four at a time, and y stays in L1.
// Every element of y sums over the rows in the same order as in tile().
template <typename Row>
void single(const TransposedTask& task) {
  constexpr int64_t kRows = 4;
  const PerHeadLinearArgs& a = *task.args;
  const int64_t first = task.head * a.head_rows + a.row_offset;
  const float* x = a.x + task.head * a.x_head_stride;
  float* y = a.y + task.head * a.y_head_stride;
  std::fill(y + task.begin, y + task.end, 0.0f);
  for (int64_t r = 0; r < a.rows; r += kRows) {
    const int64_t rows = std::min(kRows, a.rows - r);
    Row row[kRows];
    for (int64_t i = 0; i < rows; ++i) row[i] = Row(a.w, first + r + i);
    int64_t c = task.begin;
    for (; rows == kRows && c + kStep <= task.end; c += kStep) {
      F8 acc[kStepF8];
      TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) acc[j] = load8(y + c + j * kLanes);
      TAMIS_UNROLL for (int64_t i = 0; i < kRows; ++i) {
        F8 v[kStepF8];
        load32(a.w, row[i], first + r + i, c, v);
        prefetch32<Row::kBits>(row[i].p, c, kRows * a.w.row_bytes);
        const F8 xs = set8(x[r + i]);
        TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) acc[j] = fma8(v[j], xs, acc[j]);
      }
      TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) store8(acc[j], y + c + j * kLanes);
    }
    for (; c < task.end; c += kStep) single_edge<Row>(task, row, r, rows, c);
  }
}

template <typename Row>
void transposed(const TransposedTask& task) {
  const int64_t tokens = task.args->num_tokens;
  if (tokens == 1) return single<Row>(task);
  for (int64_t c = task.begin; c < task.end; c += kStep) {
    const int64_t count = std::min(kStep, task.end - c);
    fill_panel<Row>(task, c, count);
    int64_t t = 0;
    for (; t + 3 <= tokens; t += 3) tile<3>(task, t, c, count);
    if (tokens - t == 2) tile<2>(task, t, c, count);
    if (tokens - t == 1) tile<1>(task, t, c, count);
  }
}

void run_transposed_task(const TransposedTask& task) {
  with_row_reader(task.args->w, [&]<typename Row>() { transposed<Row>(task); });
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(run_transposed_task);

void run_transposed(KernelContext& context, const PerHeadLinearArgs& a) {
  if (a.num_tokens == 0) return;
  // One token reads whole rows.
  const int64_t task_cols = a.num_tokens == 1 ? a.w.cols : kTaskCols;
  const int64_t blocks = (a.w.cols + task_cols - 1) / task_cols;
  context.pool().run(a.num_heads * blocks, [&](int64_t index, int thread) {
    const int64_t begin = index % blocks * task_cols;
    const TransposedTask task = {&a, index / blocks, begin, std::min(begin + task_cols, a.w.cols),
                                 context.scratch(thread, 0, a.rows * kPanelCols)};
    HWY_DYNAMIC_DISPATCH(run_transposed_task)(task);
  });
}

}  // namespace

void per_head_linear_simd(KernelContext& context, const PerHeadLinearArgs& a) {
  a.transposed ? run_transposed(context, a) : products_of_heads(context, a, linears);
}

}  // namespace tamis
#endif  // HWY_ONCE
