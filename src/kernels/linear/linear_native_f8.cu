#include "kernels/linear/linear_native.cuh"
#include "kernels/linear/linear_products.h"

namespace tamis {

void products_native_f8(KernelContext& context, const NativeProducts& p, int64_t rows, int64_t m) {
  native::products_native<true>(context, p, rows, m);
}

}  // namespace tamis
