// Steps on a token's values that end in a norm, the products that read it, and other steps beside
// them: token_ops, then linears, with their bits.
//
// On a GPU, for one token, that is one launch: every block makes the norm again for its own rows of
// the weights, which costs less than the wait for a launch that makes it once.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/linear/linear.h"
#include "kernels/token_ops/token_ops.h"

namespace tamis {

struct TokenProductsArgs {
  // As token_ops takes them. The last of lane 0 is an RmsNormArgs, `norm`. Other lanes touch
  // nothing that lane 0 or the products write.
  std::span<const TokenStep> steps;
  std::span<const LinearArgs> products;  // of norm.y
};

// Returns whether the step `norm` is still to be run: the products have had it, norm.y may not have
// it, and norm.x lacks norm.delta. False where there is no delta; who wants norm.y runs it then.
bool token_products(KernelContext& context, int64_t tokens, const TokenProductsArgs& args);

}  // namespace tamis
