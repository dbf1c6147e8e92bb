// grouped_linear on CUDA: the groups are products of one launch of linear's kernels, which find
// their rows by the offsets on the device (linear/products.cuh). An expert without rows costs its
// blocks' first instruction. The grid is sized by the mean number of rows; blocks of an expert with
// more go through them in turn.
#include "kernels/grouped_linear/grouped_linear_impl.h"
#include "kernels/linear/linear_products.h"

namespace tamis {

void projections_cuda(KernelContext& context, std::span<const LinearArgs> args, bool ue8m0) {
  linears_native_cuda(context, args, ue8m0);
}

void grouped_linear_cuda(KernelContext& context, const GroupedLinearArgs& a) {
  for (const GroupedProduct& p : a.products) {
    if (a.rows == 0 || a.groups == 0) break;
    grouped_product_cuda(context, {{p.x, p.x_stride, a.rows, p.weights[0], p.y, p.y_stride},
                                   p.device_weights,
                                   a.offsets,
                                   a.groups,
                                   a.native,
                                   a.ue8m0});
  }
  projections(context, a.beside, a.native, a.ue8m0);
}

}  // namespace tamis
