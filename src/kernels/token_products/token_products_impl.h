// The implementation of token_products on a device, in one launch.
#pragma once

#include "kernels/token_products/token_products.h"

namespace tamis {

// One token, few and not too large products of one float format, and in lane 0 no more than an
// embedding or the experts' sum before the norm.
bool token_products_cuda_supports(int64_t tokens, const TokenProductsArgs& args);
bool token_products_cuda(KernelContext& context, const TokenProductsArgs& args);

}  // namespace tamis
