#include "kernels/linear/linear_products.h"
#include "kernels/linear/sm90/tile.cuh"

namespace tamis {

void products_sm90_f8(KernelContext& context, const NativeProducts& p) {
  sm90::launch_tiles<sm90::Config<true>>(context, p);
}

}  // namespace tamis
