// grouped_linear on CUDA: the groups are products of one launch of linear's kernels, which find
// their rows by the offsets on the device (linear/products.cuh). An expert without rows costs its
// blocks' first instruction. The grid is sized by the mean number of rows; blocks of an expert with
// more go through them in turn.
#include <algorithm>

#include "kernels/grouped_linear/grouped_linear_impl.h"
#include "kernels/linear/linear_products.h"

namespace tamis {

void projections_cuda(KernelContext& context, std::span<const LinearArgs> args, bool ue8m0) {
  linears_native_cuda(context, args, ue8m0);
}

namespace {

// Rows up to which products with and without groups are best done by the same kernel.
constexpr int64_t kFewRows = 4;

// The grouped products a few at a time, the last of them with `beside` if that is of few rows.
void run_exact(KernelContext& context, const GroupedLinearArgs& a) {
  std::span<const GroupedProduct> left = a.products;
  bool joined = false;
  while (!left.empty() && a.rows > 0 && a.groups > 0) {
    const DType dtype = left[0].weights[0].dtype;
    size_t count = 1;
    while (count < std::min(left.size(), kGroupedAtOnce) && left[count].weights[0].dtype == dtype) {
      ++count;
    }
    joined = count == left.size() && count + a.beside.size() <= kProductsAtOnce &&
             std::all_of(a.beside.begin(), a.beside.end(), [&](const LinearArgs& b) {
               return b.w.dtype == dtype && b.m <= kFewRows;
             });
    grouped_products_exact(context, left.first(count), a.offsets, a.groups, a.rows,
                           joined ? a.beside : std::span<const LinearArgs>());
    left = left.subspan(count);
  }
  if (!joined) linears(context, a.beside);
}

}  // namespace

void grouped_linear_cuda(KernelContext& context, const GroupedLinearArgs& a) {
  if (!a.native) return run_exact(context, a);
  for (const GroupedProduct& p : a.products) {
    if (a.rows == 0 || a.groups == 0) break;
    grouped_product_cuda(context, {{p.x, p.x_stride, a.rows, p.weights[0], p.y, p.y_stride},
                                   p.device_weights,
                                   a.offsets,
                                   a.groups,
                                   a.ue8m0});
  }
  projections(context, a.beside, a.native, a.ue8m0);
}

}  // namespace tamis
