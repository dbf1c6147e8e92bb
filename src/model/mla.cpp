// Multi-head latent attention (DeepSeek-V3 report, 2.1.1; DeepSeek-V3.2 for the selection).
#include <algorithm>

#include "model/layer_context.h"

namespace tamis {
namespace {

LinearArgs product(const float* x, int64_t tokens, const Weight& w, float* y) {
  return {x, w.cols, tokens, w, y, w.rows};
}

// token_products, or one after the other.
bool norm_and_project(LayerContext& c, std::span<const TokenStep> steps,
                      std::span<const LinearArgs> products) {
  if (joins_norms(c)) return token_products(c.kernels, c.tokens(), {steps, products});
  token_ops(c.kernels, c.tokens(), steps);
  c.numerics.project(c.kernels, products);
  return false;
}

RmsNormArgs query_norm(LayerContext& c, const AttentionWeights& w) {
  const int64_t width = c.config.q_lora;
  float* q = c.act.q_lora.data();
  return {q,
          width,
          nullptr,
          w.q_a_norm.data(),
          c.tokens(),
          width,
          c.config.lora_norm_eps,
          q,
          width,
          c.numerics.native()};
}

RmsNormArgs latent_norm(LayerContext& c, const AttentionWeights& w) {
  const int64_t width = c.config.kv_lora, n = c.tokens();
  return {c.act.kv_a.data(),      width + c.config.rope,     nullptr, w.kv_a_norm.data(), n, width,
          c.config.lora_norm_eps, c.act.c_kv.get(n * width), width,   c.numerics.native()};
}

struct QueryProducts {
  LinearArgs list[2];
  size_t count = 0;
  std::span<const LinearArgs> all() const { return {list, count}; }
};

QueryProducts query_products(LayerContext& c, const AttentionWeights& w) {
  const int64_t n = c.tokens();
  const float* q_lora = c.act.q_lora.data();
  QueryProducts p;
  p.list[p.count++] = product(q_lora, n, w.q_b, c.act.q.get(n * w.q_b.rows));
  if (w.indexer && indexer_needed(c)) {
    p.list[p.count++] =
        product(q_lora, n, w.indexer->wq_b, c.act.index_q.get(n * w.indexer->wq_b.rows));
  }
  return p;
}

RopeArgs query_rope(LayerContext& c) {
  const ModelConfig& m = c.config;
  const int64_t heads = c.local_heads();
  return {c.act.q.data() + m.nope,  heads * m.qk_head(), m.qk_head(),     c.tokens(), heads, m.rope,
          RopeLayout::kInterleaved, c.act.cos.data(),    c.act.sin.data()};
}

RopeArgs key_rope(LayerContext& c) {
  RopeArgs k = query_rope(c);
  k.x = c.act.kv_a.data() + c.config.kv_lora;
  k.token_stride = c.config.kv_lora + c.config.rope;
  k.heads = 1;
  return k;
}

// The token's entry; with `parts`, of the latent or of the indexer's key alone.
enum class Entry { kLatent, kIndexKey, kBoth };
KvAppendArgs entry(LayerContext& c, int64_t layer, Entry parts) {
  const ModelConfig& m = c.config;
  KvAppendArgs a;
  if (parts != Entry::kIndexKey) {
    a.c_kv = c.act.c_kv.data();
    a.k_pe = c.act.kv_a.data() + m.kv_lora;
    a.k_pe_stride = m.kv_lora + m.rope;
  }
  if (parts != Entry::kLatent) a.index_key = c.act.index_k.data();
  a.ue8m0_scale = c.numerics.ue8m0;
  a.kv = c.batch.kv[static_cast<size_t>(layer)];
  a.tokens = c.staged.tokens;
  return a;
}

// Queries with RoPE, keys in the cache. In bf16 roundings and in the FP8 indexer a rotation come in
// between, step by step.
void enter_rounded(LayerContext& c, const AttentionWeights& w, int64_t layer) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens(), heads = c.local_heads(), width = m.kv_lora + m.rope;
  const RmsNormArgs norms[] = {query_norm(c, w), latent_norm(c, w)};
  rms_norms(c.kernels, norms);
  c.numerics.project(c.kernels, query_products(c, w).all());
  const RopeArgs q = query_rope(c), k = key_rope(c);
  c.act.ropes = {q, k};
  if (w.indexer) {
    layer_norm(c.kernels, indexer_key_norm(c, *w.indexer));
    c.round(c.act.index_k.data(), n, m.index_dim, m.index_dim);
    c.act.ropes.push_back(indexer_key_rope(c));
    if (indexer_needed(c)) c.act.ropes.push_back(indexer_query_rope(c));
  }
  ropes(c.kernels, c.act.ropes);
  c.act.ropes.clear();
  c.round(q.x, n * heads, m.rope, m.qk_head());
  c.round(k.x, n, m.rope, width);
  if (w.indexer) {
    indexer_rotated(c);
    if (indexer_needed(c)) index_query(c.kernels, indexer_queries(c));
  }
  kv_append(c.kernels, entry(c, layer, w.indexer ? Entry::kBoth : Entry::kLatent));
}

// The same in float32: keys beside the queries. Leaves in act.ropes what is to be done to these.
void enter_exact(LayerContext& c, const AttentionWeights& w, int64_t layer,
                 const RmsNormArgs* late) {
  std::vector<TokenStep>& steps = c.act.entry_steps;  // kept: decoding allocates nothing
  steps.clear();
  steps.push_back({query_norm(c, w), 0});
  steps.push_back({latent_norm(c, w), 1});
  steps.push_back({key_rope(c), 1});
  steps.push_back({entry(c, layer, Entry::kLatent), 1});
  if (w.indexer) {
    steps.push_back({indexer_key_norm(c, *w.indexer), 2});
    steps.push_back({indexer_key_rope(c), 2});
    steps.push_back({entry(c, layer, Entry::kIndexKey), 2});
    if (indexer_needed(c)) steps.push_back({indexer_queries(c), 3});
  }
  if (c.act.unchecked) steps.push_back({*c.act.unchecked, 4});
  c.act.unchecked.reset();
  if (late != nullptr) steps.push_back({*late, 5});
  norm_and_project(c, steps, query_products(c, w).all());
  c.act.ropes = {query_rope(c)};
  if (w.indexer && indexer_needed(c) && !selects_beside(c)) {
    c.act.ropes.push_back(indexer_query_rope(c));
  }
}

// Attention of the absorbed queries to all positions.
MlaSparseArgs absorbed(LayerContext& c, int64_t layer) {
  const ModelConfig& m = c.config;
  const int64_t heads = c.local_heads();
  MlaSparseArgs a;
  a.q_latent = c.act.q_latent.get(c.tokens() * heads * m.kv_lora);
  a.q_pe = c.act.q.data() + m.nope;
  a.q_pe_token_stride = heads * m.qk_head();
  a.q_pe_head_stride = m.qk_head();
  a.heads = heads;
  a.kv = c.batch.kv[static_cast<size_t>(layer)];
  a.tokens = c.staged.tokens;
  a.softmax_scale = m.softmax_scale();
  a.round_bf16 = c.numerics.native();
  a.int16 = c.numerics.int8();
  return a;
}

// q̃ = W_UK^T q_nope: the query in latent space; beside it what is left in act.ropes.
PerHeadLinearArgs absorption(LayerContext& c, const AttentionWeights& w) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens(), heads = c.local_heads();
  PerHeadLinearArgs up;
  up.x = c.act.q.data();
  up.x_token_stride = heads * m.qk_head();
  up.x_head_stride = m.qk_head();
  up.num_tokens = n;
  up.num_heads = heads;
  up.w = w.kv_b;
  up.head_rows = m.nope + m.v_head;
  up.rows = m.nope;
  up.transposed = true;
  up.y = c.act.q_latent.data();
  up.y_token_stride = heads * m.kv_lora;
  up.y_head_stride = m.kv_lora;
  up.beside = c.act.ropes;
  return up;
}

// The tokens [first, first + count) of a token map.
TokenMap slice(const TokenMap& map, int64_t first, int64_t count) {
  return {count, map.sequence + first, map.position + first, map.sequences, map.max_context};
}

// o = W_UV (sum of P c_kv), for the tokens of one sequence.
void attend_absorbed(LayerContext& c, const AttentionWeights& w, MlaSparseArgs a,
                     const BatchSequence& s) {
  const ModelConfig& m = c.config;
  const int64_t heads = c.local_heads(), first = s.first_token;
  a.q_latent += first * heads * m.kv_lora;
  a.q_pe += first * a.q_pe_token_stride;
  a.tokens = slice(a.tokens, first, s.num_tokens);
  if (a.indices != nullptr) a.indices += first * a.k;
  a.out = c.act.o_latent.data() + first * heads * m.kv_lora;
  mla_sparse(c.kernels, a);
  c.round(a.out, s.num_tokens, heads * m.kv_lora, heads * m.kv_lora);

  PerHeadLinearArgs v;
  v.x = a.out;
  v.x_token_stride = heads * m.kv_lora;
  v.x_head_stride = m.kv_lora;
  v.num_tokens = s.num_tokens;
  v.num_heads = heads;
  v.w = w.kv_b;
  v.head_rows = m.nope + m.v_head;
  v.row_offset = m.nope;
  v.rows = m.v_head;
  v.int8 = c.numerics.int8();
  v.y = c.act.o.data() + first * heads * m.v_head;
  v.y_token_stride = heads * m.v_head;
  v.y_head_stride = m.v_head;
  per_head_linear(c.kernels, v);
}

// Keys and values of every position so far are expanded, then attended to in the MHA form.
void attend_expanded(LayerContext& c, const AttentionWeights& w, const MlaSparseArgs& a,
                     const BatchSequence& s) {
  const ModelConfig& m = c.config;
  const int64_t heads = c.local_heads(), first = s.first_token, width = m.kv_lora + m.rope;
  const int64_t total = c.batch.tokens.position[first + s.num_tokens - 1] + 1;
  float* latent = c.act.k_expanded.get(total * width);
  float* k_pe = c.act.k_pe_expanded.get(total * m.rope);
  kv_gather(c.kernels, {a.kv, slice(c.staged.tokens, first, s.num_tokens), total, latent, k_pe});
  LinearArgs expand = product(latent, total, w.kv_b, c.act.kv_expanded.get(total * w.kv_b.rows));
  expand.x_stride = width;
  c.numerics.project(c.kernels, {&expand, 1});

  MlaDenseArgs d;
  d.q = c.act.q.data() + first * heads * m.qk_head();
  d.tokens = s.num_tokens;
  d.heads = heads;
  d.nope = m.nope;
  d.rope = m.rope;
  d.v_dim = m.v_head;
  d.position = c.staged.tokens.position + first;
  d.positions = total;
  d.kv = expand.y;
  d.k_pe = k_pe;
  d.indices = a.indices == nullptr ? nullptr : a.indices + first * a.k;
  d.k = a.k;
  d.softmax_scale = a.softmax_scale;
  d.round_bf16 = a.round_bf16;
  d.out = c.act.o.data() + first * heads * m.v_head;
  mla_dense(c.kernels, d);
}

// ModelOptions::expand_below says where.
int64_t expand_below(const LayerContext& c) {
  if (c.selector.selects_all()) return INT64_MAX;
  if (c.batch.expand_below >= 0) return c.batch.expand_below;
  if (c.options.expand_below >= 0) return c.options.expand_below;
  if (c.act.place.device == nullptr) return INT64_MAX;
  return balanced_position(c.config, c.selector.topk());
}

// The tokens of a prompt before that position, then the others: what one of them gets does not
// depend on where its chunk ends.
void attend_prompt(LayerContext& c, const AttentionWeights& w, const MlaSparseArgs& a,
                   const BatchSequence& s) {
  const int32_t* position = c.batch.tokens.position + s.first_token;
  const int64_t below =
      std::lower_bound(position, position + s.num_tokens, expand_below(c)) - position;
  if (below > 0) attend_expanded(c, w, a, {s.first_token, below, true});
  if (below == s.num_tokens) return;
  attend_absorbed(c, w, a, {s.first_token + below, s.num_tokens - below, false});
}

void attend(LayerContext& c, const AttentionWeights& w, const MlaSparseArgs& a) {
  const int64_t n = c.tokens(), heads = c.local_heads();
  c.act.o.get(n * heads * c.config.v_head);
  c.act.o_latent.get(n * heads * c.config.kv_lora);
  const bool expanded = std::any_of(c.batch.sequences.begin(), c.batch.sequences.end(),
                                    [](const BatchSequence& s) { return s.expanded; });
  if (!expanded) return attend_absorbed(c, w, a, {0, n, false});
  for (const BatchSequence& s : c.batch.sequences) {
    s.expanded ? attend_prompt(c, w, a, s) : attend_absorbed(c, w, a, s);
  }
}

void project_out(LayerContext& c, const AttentionWeights& w) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens(), width = m.num_heads * m.v_head;
  c.round(c.act.o.data(), n, width / c.group.size(), width / c.group.size());
  float* o = c.act.o.data();
  if (c.group.size() > 1) {
    float* all = c.act.o_all.get(n * width);
    gather_columns(c, o, n, width, all);
    o = all;
  }
  LinearArgs out = product(o, n, w.o, part_of(c, n, m.hidden_size, c.act.delta.data()));
  c.numerics.project(c.kernels, {&out, 1});
  gather_columns(c, out.y, n, m.hidden_size, c.act.delta.data());
}

}  // namespace

int64_t balanced_position(const ModelConfig& m, int64_t topk) {
  return topk * (2 * m.kv_lora + m.rope) / (m.nope + m.rope + m.v_head);
}

bool joins_norms(const LayerContext& c) {
  return c.observer == nullptr && c.numerics.precision == Precision::kExact && !uses_hadamard(c);
}

// q_lora, kv latent and the indexer's key and weights: everything that reads h, behind its norm.
bool mla_project(LayerContext& c, const AttentionWeights& w) {
  const int64_t n = c.tokens();
  const float* h = c.act.normed.data();
  LinearArgs args[4];
  size_t count = 0;
  args[count++] = product(h, n, w.q_a, c.act.q_lora.get(n * c.config.q_lora));
  args[count++] = product(h, n, w.kv_a, c.act.kv_a.get(n * w.kv_a.rows));
  if (w.indexer) {
    args[count++] = product(h, n, w.indexer->wk, c.act.index_k.get(n * c.config.index_dim));
    if (indexer_needed(c)) {
      args[count++] =
          product(h, n, w.indexer->weights_proj, c.act.index_w.get(n * c.config.index_heads));
    }
  }
  const bool late = norm_and_project(c, c.act.waiting, {args, count});
  c.act.waiting.clear();
  return late;
}

void mla_forward(LayerContext& c, const AttentionWeights& w, const LayerConfig& kind, int64_t layer,
                 const RmsNormArgs* late) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens();
  uses_hadamard(c) ? enter_rounded(c, w, layer) : enter_exact(c, w, layer, late);
  c.observe("c_kv", layer, c.act.c_kv.data(), n, m.kv_lora);
  c.observe("kv_a", layer, c.act.kv_a.data(), n, m.kv_lora + m.rope);
  if (w.indexer) c.observe("index_k", layer, c.act.index_k.data(), n, m.index_dim);
  MlaSparseArgs a = absorbed(c, layer);
  const PerHeadLinearArgs up = absorption(c, w);
  const bool beside = w.indexer && selects_beside(c);
  if (!beside) {
    per_head_linear(c.kernels, up);
    c.round(up.y, n, up.y_token_stride, up.y_token_stride);
  }
  if (select_positions(c, kind, layer, a, beside ? &up : nullptr)) {
    a.indices = c.act.topk.data();
    a.k = c.selector.topk();
  }
  if (c.observer != nullptr) c.observer->attention(c.kernels, layer, a);
  attend(c, w, a);
  project_out(c, w);
}

}  // namespace tamis
