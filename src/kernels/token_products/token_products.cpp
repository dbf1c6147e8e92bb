#include "kernels/token_products/token_products.h"

#include "kernels/token_products/token_products_impl.h"

namespace tamis {

bool token_products(KernelContext& context, int64_t tokens, const TokenProductsArgs& args) {
  if (context.backend() == Backend::kCuda && token_products_cuda_supports(tokens, args)) {
    context.note("token_products", "cuda");
    return token_products_cuda(context, args);
  }
  token_ops(context, tokens, args.steps);
  linears(context, args.products);
  return false;
}

}  // namespace tamis
