#include "kernels/linear/linear_exact.cuh"
#include "kernels/linear/linear_products.h"

namespace tamis {

void products_exact_bf16(KernelContext& context, const Products& p, int64_t rows, int64_t m) {
  exact::products_exact<DType::kBF16>(context, p, rows, m);
}

}  // namespace tamis
