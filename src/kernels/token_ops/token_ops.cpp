#include "kernels/token_ops/token_ops.h"

#include "kernels/token_ops/token_ops_impl.h"

namespace tamis {
namespace {

struct Alone {
  KernelContext& context;

  void operator()(const EmbeddingArgs& a) const { embedding(context, a); }
  void operator()(const GatherRowsArgs& a) const { gather_rows(context, a); }
  void operator()(const RmsNormArgs& a) const { rms_norm(context, a); }
  void operator()(const LayerNormArgs& a) const { layer_norm(context, a); }
  void operator()(const RopeArgs& a) const { rope(context, a); }
  void operator()(const KvAppendArgs& a) const { kv_append(context, a); }
  void operator()(const IndexQueryArgs& a) const { index_query(context, a); }
  void operator()(const RoundRowsArgs& a) const { round_rows(context, a); }
  void operator()(const MoeCombineArgs& a) const { moe_combine(context, a); }
  void operator()(const CheckFiniteArgs& a) const { check_finite(context, a); }
  void operator()(const CheckFlagsArgs& a) const { check_flags(context, a); }
};

}  // namespace

void token_op_alone(KernelContext& context, const TokenOp& op) { std::visit(Alone{context}, op); }

void token_ops(KernelContext& context, int64_t tokens, std::span<const TokenStep> steps) {
  if (context.backend() == Backend::kCuda) {
    context.note("token_ops", "cuda");
    return token_ops_cuda(context, tokens, steps);
  }
  for (const TokenStep& step : steps) token_op_alone(context, step.op);
}

}  // namespace tamis
