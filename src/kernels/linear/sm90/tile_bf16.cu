#include "kernels/linear/linear_products.h"
#include "kernels/linear/sm90/tile.cuh"

namespace tamis {

void products_sm90_bf16(KernelContext& context, const NativeProducts& p) {
  sm90::launch_tiles<sm90::Config<false>>(context, p);
}

}  // namespace tamis
