// linear_int8 on vector code: cuts the products into tasks of one parallel loop, rows of W by rows
// of x, after x was quantised once for all products that read it. linear_int8_tiles_simd.cpp does
// the work.
#include <algorithm>
#include <new>

#include "kernels/linear/linear_int8_impl.h"
#include "kernels/linear/linear_int8_tasks.h"

namespace tamis {
namespace {

// How one product is cut: its tasks are numbered from first_task, blocks of x fastest, so that a
// block of W is read again while it is still in the cache.
struct Cut {
  int64_t first_task = 0, tasks = 0;
  int64_t rows = 1, x_rows = 1, x_blocks = 0;  // rows of W and of x in a task
  // Where its x lies among all quantised x (bytes, and scales), and who quantises it: none of the
  // blocks if it is that of an earlier product.
  int64_t values = 0, scales = 0, first_block = 0;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `total` in the fewest parts of at most about `wanted`, all nearly the same size, multiples of
// `unit`.
int64_t even_part(int64_t total, int64_t wanted, int64_t unit) {
  return ceil_div(ceil_div(total, ceil_div(total, wanted)), unit) * unit;
}

bool empty(const LinearArgs& a) { return a.m == 0 || a.w.rows == 0 || a.w.cols == 0; }

void cut_product(const LinearArgs& a, int64_t blocked_rows, Cut& cut) {
  if (empty(a)) return;
  const bool few = a.m <= kStreamRows;
  const int64_t wanted = few ? std::max(kPanelRows, kTaskBytes / a.w.row_bytes) : blocked_rows;
  cut.rows = even_part(a.w.rows, wanted, kPanelRows);
  cut.x_rows = a.m <= kDirectRows ? a.m : even_part(a.m, kBlockX, kTileX);
  cut.x_blocks = ceil_div(a.m, cut.x_rows);
  cut.tasks = ceil_div(a.w.rows, cut.rows) * cut.x_blocks;
}

// Rows of W in a task with many rows of x: many, so that x is seldom fetched, but not so many that
// threads are left without a share.
int64_t rows_per_task(std::span<const LinearArgs> args, int threads) {
  constexpr int64_t kTasksPerThread = 4, kFewest = 64, kMost = 512;
  int64_t rows = 0;
  for (const LinearArgs& a : args) {
    if (a.m > kStreamRows) rows += a.w.rows * ceil_div(a.m, kBlockX);
  }
  return std::clamp(ceil_div(rows, threads * kTasksPerThread), kFewest, kMost);
}

bool same_x(const LinearArgs& a, const LinearArgs& b) {
  return a.x == b.x && a.m == b.m && a.x_stride == b.x_stride && a.w.cols == b.w.cols &&
         a.w.dtype == b.w.dtype;
}

// The tasks of all products and the room of their x.
struct Plan {
  Cut* cuts;
  int64_t products, tasks = 0, blocks = 0;    // blocks of x to quantise
  int64_t values = 0, bytes = 0, scales = 0;  // of x

  // The product that has number `index` of the tasks, or of the blocks.
  const Cut& find(int64_t index, int64_t Cut::*first) const {
    const auto after = [first](int64_t i, const Cut& c) { return i < c.*first; };
    return *(std::upper_bound(cuts, cuts + products, index, after) - 1);
  }
};

Plan plan_products(std::span<const LinearArgs> args, int threads, Cut* cuts) {
  Plan plan = {cuts, static_cast<int64_t>(args.size())};
  const int64_t blocked_rows = rows_per_task(args, threads);
  const LinearArgs* last = nullptr;
  const Cut* last_cut = nullptr;
  for (const LinearArgs& a : args) {
    Cut& cut = *new (cuts++) Cut();
    cut_product(a, blocked_rows, cut);
    cut.first_task = plan.tasks;
    cut.first_block = plan.blocks;
    plan.tasks += cut.tasks;
    if (cut.tasks == 0) continue;
    if (last != nullptr && same_x(*last, a)) {
      cut.values = last_cut->values;
      cut.scales = last_cut->scales;
      continue;
    }
    cut.values = plan.bytes;
    cut.scales = plan.scales;
    plan.values += a.m * group_count(a.w.cols) * kIntGroup;
    plan.bytes += a.m * group_count(a.w.cols) * kIntGroup * value_bytes(a.m);
    plan.scales += a.m * group_count(a.w.cols);
    plan.blocks += cut.x_blocks;
    last = &a;
    last_cut = &cut;
  }
  return plan;
}

}  // namespace

void linears_int8_simd(KernelContext& context, const std::span<const LinearArgs>& args) {
  constexpr auto kCutFloats = static_cast<int64_t>(sizeof(Cut) / sizeof(float));
  constexpr int64_t kSerialValues = 1 << 14;  // so many are quantised sooner than a thread wakes
  const auto products = static_cast<int64_t>(args.size());
  auto* cuts = reinterpret_cast<Cut*>(context.scratch(0, 3, (products + 1) * kCutFloats));
  const Plan plan = plan_products(args, context.pool().num_threads(), cuts);
  auto* values = reinterpret_cast<int8_t*>(context.scratch(0, 2, plan.bytes / 4));
  float* scales = context.scratch(0, 4, plan.scales);
  for (const LinearArgs& a : args) {
    for (int64_t m = 0; a.w.cols == 0 && m < a.m; ++m) {
      std::fill_n(a.y + m * a.y_stride, a.w.rows, 0.0F);
    }
  }
  const auto part_of_x = [&](const LinearArgs& a, const Cut& cut, int64_t block) -> QuantisedX {
    const int64_t groups = group_count(a.w.cols), m = block * cut.x_rows;
    return {values + cut.values + m * groups * kIntGroup * value_bytes(a.m),
            scales + cut.scales + m * groups, std::min(cut.x_rows, a.m - m)};
  };
  const auto quantise = [&](int64_t index, int) {
    const Cut& cut = plan.find(index, &Cut::first_block);
    const LinearArgs& a = args[static_cast<size_t>(&cut - plan.cuts)];
    const int64_t block = index - cut.first_block;
    run_quantise_task({&a, block * cut.x_rows, part_of_x(a, cut, block)});
  };
  if (plan.values <= kSerialValues) {
    for (int64_t i = 0; i < plan.blocks; ++i) quantise(i, 0);
  } else {
    context.pool().run(plan.blocks, quantise);
  }
  context.pool().run(plan.tasks, [&](int64_t index, int thread) {
    const Cut& cut = plan.find(index, &Cut::first_task);
    const LinearArgs& a = args[static_cast<size_t>(&cut - plan.cuts)];
    const int64_t row = (index - cut.first_task) / cut.x_blocks * cut.rows;
    const int64_t block = (index - cut.first_task) % cut.x_blocks;
    Int8Task task = {&a,
                     row,
                     std::min(cut.rows, a.w.rows - row),
                     block * cut.x_rows,
                     part_of_x(a, cut, block),
                     nullptr};
    if (a.m > kDirectRows) task.panel = context.scratch(thread, 0, kPanelFloats + kPanelScales);
    run_int8_task(task);
  });
}

}  // namespace tamis
