#include "kernels/linear/linear_native.cuh"
#include "kernels/linear/linear_products.h"

namespace tamis {

void products_native_bf16(KernelContext& context, const NativeProducts& p, int64_t rows,
                          int64_t m) {
  native::products_native<false>(context, p, rows, m);
}

}  // namespace tamis
