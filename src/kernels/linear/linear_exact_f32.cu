#include "kernels/linear/linear_exact.cuh"
#include "kernels/linear/linear_products.h"

namespace tamis {

void products_exact_f32(KernelContext& context, const Products& p, int64_t rows, int64_t m) {
  exact::products_exact<DType::kF32>(context, p, rows, m);
}

}  // namespace tamis
