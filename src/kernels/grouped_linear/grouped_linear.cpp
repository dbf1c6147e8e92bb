#include "kernels/grouped_linear/grouped_linear.h"

#include "kernels/elementwise/elementwise.h"
#include "kernels/grouped_linear/grouped_linear_impl.h"
#include "kernels/integer_weight.h"
#include "kernels/linear/linear_int8.h"

namespace tamis {
namespace {

// One product for each group that has rows, all in one parallel loop.
void grouped_linear_reference(KernelContext& context, const GroupedLinearArgs& a) {
  std::vector<LinearArgs>& list = *a.work;
  list.clear();
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t first = a.offsets[g], rows = a.offsets[g + 1] - first;
    if (rows == 0) continue;
    for (const GroupedProduct& p : a.products) {
      list.push_back({p.x + first * p.x_stride, p.x_stride, rows, p.weights[static_cast<size_t>(g)],
                      p.y + first * p.y_stride, p.y_stride});
    }
  }
  list.insert(list.end(), a.beside.begin(), a.beside.end());
  projections(context, list, a.native, a.ue8m0, a.int8);
}

// Runs of neighbours that take the same product, each run in one parallel loop.
void int8_projections(KernelContext& context, std::span<const LinearArgs> args) {
  while (!args.empty()) {
    const bool int8 = is_integer(args[0].w);
    size_t count = 1;
    while (count < args.size() && is_integer(args[count].w) == int8) ++count;
    int8 ? linears_int8(context, args.first(count)) : linears(context, args.first(count));
    args = args.subspan(count);
  }
}

constexpr Implementation<GroupedLinearArgs> kList[] = {
    {"cuda", [](const GroupedLinearArgs&) { return true; }, grouped_linear_cuda},
    {"reference", [](const GroupedLinearArgs&) { return true; }, grouped_linear_reference},
};

}  // namespace

void grouped_linear(KernelContext& context, const GroupedLinearArgs& args) {
  dispatch<GroupedLinearArgs>(context, "grouped_linear", kList, args);
}

void projections(KernelContext& context, std::span<const LinearArgs> args, bool native, bool ue8m0,
                 bool int8) {
  if (int8) return int8_projections(context, args);
  if (!native) return linears(context, args);
  if (context.backend() == Backend::kCuda) return projections_cuda(context, args, ue8m0);
  for (const LinearArgs& a : args) {
    if (a.w.dtype == DType::kF8E4M3) {
      linear_fp8(context, {a, ue8m0});
    } else {
      linear(context, a);
    }
    round_rows(context, {a.y, a.m, a.w.rows, a.y_stride});
  }
}

}  // namespace tamis
