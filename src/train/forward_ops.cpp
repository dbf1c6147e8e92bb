#include "train/forward_ops.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/ops.h"

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

// The paged cache of one sequence that the sparse operations read, made for one call.
class SequenceCache {
 public:
  SequenceCache(int64_t tokens, int64_t kv_lora, int64_t rope, int64_t index_dim) {
    const int64_t count = (tokens + kPageTokens - 1) / kPageTokens;
    layer_.layout = {kv_lora, rope, index_dim, KvFormat::kF32, KvFormat::kF32};
    layer_.page_stride = layer_.layout.page_bytes();
    memory_.resize(static_cast<size_t>(count * layer_.page_stride));
    layer_.base = memory_.data();
    for (int64_t p = 0; p < count; ++p) pages_.push_back(static_cast<int32_t>(p));
    for (int64_t t = 0; t < tokens; ++t) position_.push_back(static_cast<int32_t>(t));
    sequence_of_.resize(position_.size());
    sequence_.pages = pages_.data();
  }

  void append(KernelContext& context, const float* c_kv, const float* k_pe, int64_t k_pe_stride,
              const float* index_key) {
    KvAppendArgs a;
    a.c_kv = c_kv;
    a.k_pe = k_pe;
    a.k_pe_stride = k_pe_stride;
    a.index_key = index_key;
    a.kv = layer_;
    a.tokens = tokens();
    kv_append(context, a);
  }

  const KvLayer& layer() const { return layer_; }
  TokenMap tokens() const {
    return {static_cast<int64_t>(position_.size()), sequence_of_.data(), position_.data(),
            &sequence_, static_cast<int64_t>(position_.size())};
  }

 private:
  KvLayer layer_;
  std::vector<std::byte> memory_;
  std::vector<int32_t> pages_, position_, sequence_of_;
  KvSequence sequence_;
};

}  // namespace

template <>
void ForwardOps<float>::products(KernelContext& context, std::span<const Product<float>> list) {
  std::vector<LinearArgs> args;
  for (const Product<float>& p : list) {
    args.push_back({p.x, p.x_stride, p.m, float_weight(p.w, p.rows, p.cols), p.y, p.rows});
  }
  linears(context, args);
}

template <>
void ForwardOps<float>::rms_norm(KernelContext& context, const float* x, int64_t x_stride,
                                 const float* w, int64_t rows, int64_t width, float eps, float* y) {
  // x is only written when there is a delta to add.
  tamis::rms_norm(context,
                  {const_cast<float*>(x), x_stride, nullptr, w, rows, width, eps, y, width, false});
}

template <>
void ForwardOps<float>::layer_norm(KernelContext& context, const float* x, const float* w,
                                   const float* b, int64_t rows, int64_t width, float eps,
                                   float* y) {
  tamis::layer_norm(context, {x, width, w, b, rows, width, eps, y, width});
}

template <>
void ForwardOps<float>::swiglu(KernelContext& context, const float* gate, const float* up,
                               int64_t count, float* y) {
  tamis::swiglu(context, {gate, up, 1, count, y});
}

template <>
void ForwardOps<float>::embedding(KernelContext& context, const float* table,
                                  const ModelConfig& config, std::span<const int32_t> ids,
                                  float* y) {
  EmbeddingArgs a;
  a.w = float_weight(table, config.vocab_size, config.hidden_size);
  a.ids = ids.data();
  a.tokens = static_cast<int64_t>(ids.size());
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
void ForwardOps<float>::attend_dense(KernelContext& context, const MlaSequence<float>& in,
                                     float* out) {
  std::vector<int32_t> position(static_cast<size_t>(in.tokens));
  for (size_t t = 0; t < position.size(); ++t) position[t] = static_cast<int32_t>(t);
  MlaDenseArgs a;
  a.q = in.q;
  a.tokens = in.tokens;
  a.heads = in.heads;
  a.nope = in.nope;
  a.rope = in.rope;
  a.v_dim = in.v_dim;
  a.position = position.data();
  a.kv = in.kv;
  a.k_pe = in.k_pe;
  a.softmax_scale = in.softmax_scale;
  a.out = out;
  mla_dense(context, a);
}

template <>
void ForwardOps<float>::select(KernelContext& context, const SelectArgs& args, int32_t* indices) {
  // The latent part of the cache stays empty: the indexer reads its own keys alone.
  SequenceCache cache(args.tokens, 1, 0, args.dim);
  const std::vector<float> nothing(static_cast<size_t>(args.tokens));
  cache.append(context, nothing.data(), nothing.data(), 0, args.keys);
  std::vector<uint8_t> has_nan(static_cast<size_t>(args.tokens));
  IndexerSelectArgs a;
  a.in = {args.q, args.w, args.heads, cache.layer(), cache.tokens()};
  a.k = args.topk;
  a.indices = indices;
  a.has_nan = has_nan.data();
  indexer_select(context, a);
}

template <>
void ForwardOps<float>::attend_sparse(KernelContext& context,
                                      const MlaSparseBackwardArgs<float>& in, float* out) {
  SequenceCache cache(in.tokens, in.kv_lora, in.rope, 0);
  cache.append(context, in.c_kv, in.k_pe, in.rope, nullptr);
  MlaSparseArgs a;
  a.q_latent = in.q_latent;
  a.q_pe = in.q_pe;
  a.q_pe_token_stride = in.heads * in.q_pe_stride;
  a.q_pe_head_stride = in.q_pe_stride;
  a.heads = in.heads;
  a.kv = cache.layer();
  a.tokens = cache.tokens();
  a.indices = in.indices;
  a.k = in.k;
  a.softmax_scale = in.softmax_scale;
  a.out = out;
  mla_sparse(context, a);
}

}  // namespace tamis
