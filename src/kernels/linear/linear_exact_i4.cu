#include "kernels/linear/linear_exact.cuh"
#include "kernels/linear/linear_products.h"

namespace tamis {

void products_exact_i4(KernelContext& context, const Products& p, int64_t rows, int64_t m) {
  exact::products_exact<DType::kI4>(context, p, rows, m);
}

}  // namespace tamis
