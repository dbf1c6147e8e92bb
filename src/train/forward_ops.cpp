#include "train/forward_ops.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/matmul/grouped_matmul.h"
#include "kernels/ops.h"
#include "kernels/train_ops.h"

namespace tamis {
namespace {

Weight float_weight(const float* w, int64_t rows, int64_t cols) {
  Weight out;
  out.data = reinterpret_cast<const std::byte*>(w);
  out.rows = rows;
  out.cols = cols;
  out.row_bytes = cols * static_cast<int64_t>(sizeof(float));
  return out;
}

}  // namespace

template <>
void ForwardOps<float>::products(KernelContext& context, std::span<const Product<float>> list) {
  if (context.backend() == Backend::kCuda) {
    std::vector<MatmulArgs<float>> args;
    for (const Product<float>& p : list) {
      args.push_back({p.x, p.x_stride, 1, p.w, 1, p.cols, p.y, p.rows, p.m, p.rows, p.cols, false,
                      p.x_bf16, p.w_bf16, p.y_bf16, p.turned, p.add});
    }
    return matmuls<float>(context, args);
  }
  std::vector<LinearArgs> args;
  for (const Product<float>& p : list) {
    args.push_back({p.x, p.x_stride, p.m, float_weight(p.w, p.rows, p.cols), p.y, p.rows});
  }
  linears(context, args);
}

template <>
void ForwardOps<float>::rms_norm(KernelContext& context, const float* x, int64_t x_stride,
                                 const float* w, int64_t rows, int64_t width, float eps, float* y,
                                 uint16_t* y_bf16) {
  // x is only written when there is a delta to add.
  tamis::rms_norm(context, {const_cast<float*>(x), x_stride, nullptr, w, rows, width, eps, y, width,
                            false, y_bf16});
}

template <>
void ForwardOps<float>::layer_norm(KernelContext& context, const float* x, const float* w,
                                   const float* b, int64_t rows, int64_t width, float eps,
                                   float* y) {
  tamis::layer_norm(context, {x, width, w, b, rows, width, eps, y, width});
}

template <>
void ForwardOps<float>::swiglu(KernelContext& context, const float* gate, const float* up,
                               int64_t count, float* y, uint16_t* y_bf16) {
  tamis::swiglu(context, {gate, up, 1, count, y, y_bf16});
}

template <>
void ForwardOps<float>::embedding(KernelContext& context, const float* table,
                                  const ModelConfig& config, const int32_t* ids, int64_t tokens,
                                  float* y) {
  EmbeddingArgs a;
  a.w = float_weight(table, config.vocab_size, config.hidden_size);
  a.ids = ids;
  a.tokens = tokens;
  a.y = y;
  tamis::embedding(context, a);
}

template <>
void ForwardOps<float>::moe_gate(KernelContext& context, const ModelConfig& config,
                                 const float* logits, const float* bias, int64_t tokens,
                                 int32_t* ids, float* weights) {
  MoeGateArgs a;
  a.logits = logits;
  a.bias = bias;
  a.tokens = tokens;
  a.experts = config.num_experts;
  a.groups = config.num_groups;
  a.topk_group = config.topk_group;
  a.num_chosen = config.experts_per_token;
  a.norm_topk_prob = config.norm_topk_prob;
  a.routed_scaling_factor = config.routed_scaling_factor;
  a.ids = ids;
  a.weights = weights;
  tamis::moe_gate(context, a);
}

template <>
void ForwardOps<float>::permute(KernelContext& context, const ModelConfig& config,
                                const int32_t* ids, const float* x, int64_t tokens, int32_t* row_of,
                                int64_t* offsets, float* rows, uint16_t* rows_bf16) {
  moe_permute(context, {ids, tokens, config.experts_per_token, config.num_experts, x,
                        config.hidden_size, row_of, offsets, rows, rows_bf16});
}

template <>
void ForwardOps<float>::expert_products(KernelContext& context, const ExpertRows& rows,
                                        std::span<const ExpertProduct<float>> list) {
  if (context.backend() == Backend::kCuda) {  // offsets are there
    std::vector<GroupedMatmulArgs<float>> args;
    for (const ExpertProduct<float>& p : list) {
      args.push_back({{p.x, p.cols, 1, p.w, 1, p.cols, p.y, p.rows, rows.all, p.rows, p.cols, false,
                       p.x_bf16, p.w_bf16},
                      GroupedOver::kRows,
                      p.w_stride,
                      rows.offsets,
                      rows.experts});
    }
    return grouped_matmuls<float>(context, args);
  }
  std::vector<Product<float>> each;
  for (int64_t e = 0; e < rows.experts; ++e) {
    const int64_t first = rows.offsets[e], count = rows.offsets[e + 1] - first;
    if (count == 0) continue;
    for (const ExpertProduct<float>& p : list) {
      each.push_back({p.x + first * p.cols, p.cols, count, p.w + e * p.w_stride, p.rows, p.cols,
                      p.y + first * p.rows});
    }
  }
  products(context, each);
}

template <>
void ForwardOps<float>::attend_dense(KernelContext& context, const MlaSequence<float>& in,
                                     std::span<const int64_t> begins, const SelectionMask& selected,
                                     float* out, float* log_sum) {
  mla_dense_train(context, {in, out, begins, log_sum, selected});
}

template <>
void ForwardOps<float>::select(KernelContext& context, const SelectArgs& a, int32_t* indices) {
  indexer_select_train(context,
                       {a.q, a.w, a.keys, a.tokens, a.heads, a.dim, a.topk, indices, a.sequences});
}

template <>
void ForwardOps<float>::select_mask(KernelContext& context, const SelectArgs& a, int32_t* indices,
                                    const MaskTo& mask) {
  tamis::select_mask(context,
                     {{a.q, a.w, a.keys, a.tokens, a.heads, a.dim, a.topk, indices, a.sequences},
                      mask.bits,
                      mask.stride,
                      mask.words});
}

template <>
void ForwardOps<float>::attend_sparse(KernelContext& context,
                                      const MlaSparseBackwardArgs<float>& in, float* out,
                                      float* log_sum, float* target) {
  mla_sparse_train(context, {in, out, log_sum, target});
}

}  // namespace tamis
