// Operations on the values of each token by itself, several in one launch.
//
// Between two products of a layer, a token's values pass through norms, rotations, the cache and
// sums. On a GPU each of these would cost a launch, two microseconds whatever it does. Steps of one
// lane run in order and may read what earlier ones wrote of the same token; lanes run side by side
// and must not depend on each other. Numbers are those of the operations called one by one.
#pragma once

#include <cstdint>
#include <span>
#include <variant>

#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/kv_append/kv_append.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/moe_permute/moe_permute.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"

namespace tamis {

// Each over the same tokens: row t, or the rows of token t, which are rows / tokens of them.
using TokenOp =
    std::variant<EmbeddingArgs, GatherRowsArgs, RmsNormArgs, LayerNormArgs, RopeArgs, KvAppendArgs,
                 IndexQueryArgs, RoundRowsArgs, MoeCombineArgs, CheckFiniteArgs, CheckFlagsArgs>;

struct TokenStep {
  TokenOp op;
  int lane = 0;
};

// The operation itself.
void token_op_alone(KernelContext& context, const TokenOp& op);

void token_ops(KernelContext& context, int64_t tokens, std::span<const TokenStep> steps);

}  // namespace tamis
