// Multi-head latent attention and the lightning indexer, forward and backward (src/model/mla.cpp,
// indexer.cpp).
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/mla_dense/mla_bf16.h"
#include "train/exchange.h"
#include "train/linear_layers.h"
#include "train/sparse_attention.h"

namespace tamis {
namespace {

// Runs body(begin, count, sequences) for what sparse operations take at once: every sequence on a
// GPU, one after the other on a CPU.
template <typename T, typename Body>
void for_each_selection(const Pass<T>& p, const Body& body) {
  if (p.kernels.device() == nullptr) {
    return for_each_sequence(
        p, [&](int64_t begin, int64_t count) { body(begin, count, TokenSequences()); });
  }
  body(0, p.tokens(), TokenSequences{p.state.position.data(), longest_sequence(p)});
}

template <typename T>
RopeTurnArgs<T> turn(Pass<T>& p, T* x, int64_t token_stride, int64_t head_stride, int64_t heads,
                     RopeLayout layout, bool back) {
  return {x,      token_stride,       head_stride,        p.tokens(), heads, p.config.rope,
          layout, p.state.cos.data(), p.state.sin.data(), back};
}

// float turns forward with the operation that serves a model.
void turn_forward(KernelContext& context, const RopeTurnArgs<float>& a) {
  rope(context,
       {a.x, a.token_stride, a.head_stride, a.tokens, a.heads, a.dim, a.layout, a.cos, a.sin});
}
void turn_forward(KernelContext& context, const RopeTurnArgs<double>& a) { rope_turn(context, a); }

// What layer l attends to where that is rounded.
template <typename T>
MlaBf16Sequence bf16_sequence(const Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  const LayerState<T>& a = p.layer(l);
  return {a.q_bf16.data(), a.kv_bf16.data(), p.tokens(), m.num_heads,
          m.nope,          m.rope,           m.v_head,   static_cast<float>(m.softmax_scale())};
}

// Whether layer l keeps what its attention reads and writes in bf16 alone: products round it, and
// no indexer looks at it.
template <typename T>
bool rounds_attention(const Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  const bool own = p.layer_config(l).indexer == IndexerKind::kOwn;
  if (own && (p.sparse() || p.objective.train_indexer || p.measures())) return false;
  return p.groups.tensor == nullptr && !p.objective.fp8 &&
         rounds(p, p.tokens(),
                {m.hidden_size, m.q_lora, m.kv_lora, m.kv_lora + m.rope, m.num_heads * m.qk_head(),
                 m.num_heads * (m.nope + m.v_head), m.num_heads * m.v_head}) &&
         mla_takes_bf16(p.kernels, bf16_sequence(p, l));
}

// Where the rounded h goes: the layer's own, which is kept, or one for all.
template <typename T>
Buffer<uint16_t>& normed_place(const Pass<T>& p, int64_t l) {
  return rounds_attention(p, l) && keeps_rounded(p) ? p.layer(l).normed_bf16
                                                    : p.state.work.normed_bf16;
}

// h = norm(x) of layer l in work.normed, or rounded in work.normed_bf16 where products want that;
// in both for an indexer.
template <typename T>
void norm_input(Pass<T>& p, int64_t l) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  Workspace<T>& work = p.state.work;
  ForwardOps<T>::rms_norm(p.kernels, p.layer(l).x.data(), d, p.w + p.slots(l).input_norm, n, d,
                          static_cast<T>(p.config.norm_eps),
                          sized_if(!rounds_attention(p, l), p, work.normed, n * d),
                          sized_if(rounds(p, n, {d}), p, normed_place(p, l), n * d));
}

template <typename T>
const uint16_t* normed_bf16(const Pass<T>& p, int64_t l) {
  return rounds(p, p.tokens(), {p.config.hidden_size}) ? normed_place(p, l).data() : nullptr;
}

template <typename T>
const uint16_t* q_lora_bf16(const Pass<T>& p, const LayerState<T>& a) {
  return rounds(p, p.tokens(), {p.config.q_lora}) ? a.q_lora_bf16.data() : nullptr;
}
template <typename T>
const uint16_t* c_kv_bf16(const Pass<T>& p, const LayerState<T>& a) {
  return rounds(p, p.tokens(), {p.config.kv_lora}) ? a.c_kv_bf16.data() : nullptr;
}

// q_a and kv_a of layer l from h = work.normed.
template <typename T>
void down_projections(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  const LayerSlots& s = p.slots(l);
  LayerState<T>& a = p.layer(l);
  const int64_t n = p.tokens(), width = m.kv_lora + m.rope;
  const T* h = p.state.work.normed.data();
  const uint16_t* h16 = normed_bf16(p, l);
  const Product<T> down[] = {
      {h, m.hidden_size, n, p.w + s.q_a, m.q_lora, m.hidden_size, sized(p, a.q_a, n * m.q_lora),
       h16},
      {h, m.hidden_size, n, p.w + s.kv_a, width, m.hidden_size, sized(p, a.kv_a, n * width), h16}};
  linear_forward<T>(p, down);
}

// The angles of every head's queries.
template <typename T>
TurnedColumns<T> turned_queries(const Pass<T>& p) {
  const ModelConfig& m = p.config;
  return {p.state.cos.data(), p.state.sin.data(), m.qk_head(), m.nope, m.rope / 2};
}

// q, c_kv and k_pe from those; k_pe not if attention turns and rounds it.
template <typename T>
void queries_and_latents(Pass<T>& p, int64_t l) {
  using F = ForwardOps<T>;
  const ModelConfig& m = p.config;
  const LayerSlots& s = p.slots(l);
  LayerState<T>& a = p.layer(l);
  const int64_t n = p.tokens(), width = m.kv_lora + m.rope, qk = m.qk_head();
  const auto eps = static_cast<T>(m.lora_norm_eps);
  const bool rounded = rounds_attention(p, l);
  F::rms_norm(p.kernels, a.q_a.data(), m.q_lora, p.w + s.q_a_norm, n, m.q_lora, eps,
              sized_if(!rounded, p, a.q_lora, n * m.q_lora),
              sized_if(rounds(p, n, {m.q_lora}), p, a.q_lora_bf16, n * m.q_lora));
  F::rms_norm(p.kernels, a.kv_a.data(), width, p.w + s.kv_a_norm, n, m.kv_lora, eps,
              sized_if(!rounded, p, a.c_kv, n * m.kv_lora),
              sized_if(rounds(p, n, {m.kv_lora}), p, a.c_kv_bf16, n * m.kv_lora));
  Product<T> up{a.q_lora.data(),
                m.q_lora,
                n,
                p.w + s.q_b,
                m.num_heads * qk,
                m.q_lora,
                sized_if(!rounded, p, a.q, n * m.num_heads * qk),
                q_lora_bf16(p, a),
                sized_if(rounded, p, a.q_bf16, n * m.num_heads * qk)};
  if (rounded) up.turned = turned_queries(p);
  linear_forward(p, up);
  if (rounded) return;
  turn_forward(p.kernels, turn(p, a.q.data() + m.nope, m.num_heads * qk, qk, m.num_heads,
                               RopeLayout::kInterleaved, false));
  copy_columns<T>(p.kernels, {a.kv_a.data() + m.kv_lora, width, n, m.rope,
                              sized(p, a.k_pe, n * m.rope), m.rope});
  turn_forward(p.kernels, turn(p, a.k_pe.data(), m.rope, 0, 1, RopeLayout::kInterleaved, false));
}

// ---- the indexer

// Every scale of the index score: heads^-1/2 dim^-1/2.
double index_scale(const ModelConfig& m) {
  return 1 / std::sqrt(static_cast<double>(m.index_heads * m.index_dim));
}

template <typename T>
void index_forward(Pass<T>& p, int64_t l) {
  using F = ForwardOps<T>;
  const ModelConfig& m = p.config;
  const IndexerSlots& s = p.slots(l).indexer;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), width = m.index_heads * m.index_dim;
  const T* h = work.normed.data();
  const uint16_t* h16 = normed_bf16(p, l);
  const Product<T> list[] = {{a.q_lora.data(), m.q_lora, n, p.w + s.wq_b, width, m.q_lora,
                              sized(p, work.index_q, n * width), q_lora_bf16(p, a)},
                             {h, m.hidden_size, n, p.w + s.wk, m.index_dim, m.hidden_size,
                              sized(p, work.index_k_raw, n * m.index_dim), h16}};
  linear_forward<T>(p, list);
  const Product<T> weights{h,
                           m.hidden_size,
                           n,
                           p.w + s.weights_proj,
                           m.index_heads,
                           m.hidden_size,
                           sized(p, work.index_w, n * m.index_heads)};
  F::products(p.kernels, {&weights, 1});
  F::layer_norm(p.kernels, work.index_k_raw.data(), p.w + s.k_norm_w, p.w + s.k_norm_b, n,
                m.index_dim, static_cast<T>(1e-6F), sized(p, work.index_k, n * m.index_dim));
  turn_forward(p.kernels, turn(p, work.index_q.data(), width, m.index_dim, m.index_heads,
                               m.index_rope, false));
  turn_forward(p.kernels, turn(p, work.index_k.data(), m.index_dim, 0, 1, m.index_rope, false));
  scale_values(p.kernels, work.index_w.data(), work.index_w.size(), static_cast<T>(index_scale(m)));
}

// Gradients of the indexer's tensors from those of its q, k and w. Its inputs get none.
template <typename T>
void index_backward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  const IndexerSlots& s = p.slots(l).indexer;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), width = m.index_heads * m.index_dim;
  T *dq = work.d_index_q.data(), *dk = work.d_index_k.data(), *dw = work.d_index_w.data();
  rope_turn(p.kernels, turn(p, dq, width, m.index_dim, m.index_heads, m.index_rope, true));
  rope_turn(p.kernels, turn(p, dk, m.index_dim, 0, 1, m.index_rope, true));
  layer_norm_backward<T>(p.kernels,
                         {work.index_k_raw.data(), p.w + s.k_norm_w, dk, n, m.index_dim,
                          static_cast<T>(1e-6F), dk, p.grad + s.k_norm_w, p.grad + s.k_norm_b});
  scale_values(p.kernels, dw, work.d_index_w.size(), static_cast<T>(index_scale(m)));
  const T* h = work.normed.data();
  const uint16_t* h16 = normed_bf16(p, l);
  const ProductBackward<T> list[] = {
      {dq, width, a.q_lora.data(), m.q_lora, n, p.w + s.wq_b, width, m.q_lora, nullptr, false,
       p.grad + s.wq_b, nullptr, q_lora_bf16(p, a)},
      {dk, m.index_dim, h, m.hidden_size, n, p.w + s.wk, m.index_dim, m.hidden_size, nullptr, false,
       p.grad + s.wk, nullptr, h16}};
  linear_backward<T>(p, list);
  products_backward<T>(p.kernels,
                       {dw, m.index_heads, h, m.hidden_size, n, p.w + s.weights_proj, m.index_heads,
                        m.hidden_size, nullptr, false, p.grad + s.weights_proj});
}

// The rows that each token selects, or their bits.
template <typename T>
void select(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  LayerState<T>& a = p.layer(l);
  const int64_t k = p.objective.topk, width = m.index_heads * m.index_dim, tokens = p.tokens();
  const int64_t longest = longest_sequence(p);
  int32_t* indices = sized(p, p.masked() ? work.indices : a.indices, tokens * k);
  uint64_t* bits =
      p.masked() ? sized(p, a.selected, tokens * selection_words_in_all(longest)) : nullptr;
  for_each_selection(p, [&](int64_t b, int64_t n, const TokenSequences& sequences) {
    const typename ForwardOps<T>::SelectArgs args{work.index_q.data() + b * width,
                                                  work.index_w.data() + b * m.index_heads,
                                                  work.index_k.data() + b * m.index_dim,
                                                  n,
                                                  m.index_heads,
                                                  m.index_dim,
                                                  k,
                                                  sequences};
    if (!p.masked()) return ForwardOps<T>::select(p.kernels, args, indices + b * k);
    ForwardOps<T>::select_mask(p.kernels, args, indices + b * k,
                               {bits + b, tokens, selection_words(longest)});
  });
}

// What layer l attends to in the expanded form.
template <typename T>
SelectionMask mask_of(const Pass<T>& p, int64_t l) {
  const Buffer<uint64_t>& bits = p.layer(l).selected;
  if (bits.empty()) return {};
  return {bits.data(), p.tokens(), selection_words(longest_sequence(p))};
}

// ---- attention of each sequence

template <typename T>
MlaSequence<T> dense_sequence(const Pass<T>& p, int64_t l, int64_t begin, int64_t count) {
  const ModelConfig& m = p.config;
  const LayerState<T>& a = p.layer(l);
  const int64_t kv = m.num_heads * (m.nope + m.v_head);
  return {a.q.data() + begin * m.num_heads * m.qk_head(),
          a.kv.data() + begin * kv,
          a.k_pe.data() + begin * m.rope,
          count,
          m.num_heads,
          m.nope,
          m.rope,
          m.v_head,
          static_cast<T>(m.softmax_scale())};
}

template <typename T>
IndexerSequence<T> index_sequence(Pass<T>& p, int64_t l, int64_t begin, int64_t count) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t width = m.index_heads * m.index_dim;
  return {work.index_q.data() + begin * width,
          work.index_w.data() + begin * m.index_heads,
          work.index_k.data() + begin * m.index_dim,
          count,
          m.index_heads,
          m.index_dim,
          p.objective.kl_scale,
          p.state.kl.data() + l * p.tokens() + begin,
          work.d_index_q.data() + begin * width,
          work.d_index_w.data() + begin * m.index_heads,
          work.d_index_k.data() + begin * m.index_dim};
}

// Queries and keys of all heads, for what looks at their mean.
template <typename T>
void gather_heads(Pass<T>& p, int64_t l) {
  if (p.groups.tensor == nullptr) return;
  const ModelConfig& m = p.config;
  const LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  gather_columns(p, a.q.data(), p.tokens(), m.num_heads * m.qk_head(), work.all_q);
  gather_columns(p, a.kv.data(), p.tokens(), m.num_heads * (m.nope + m.v_head), work.all_kv);
}

template <typename T>
MlaSequence<T> all_heads_of_sequence(const Pass<T>& p, int64_t l, int64_t begin, int64_t count) {
  MlaSequence<T> s = dense_sequence(p, l, begin, count);
  if (p.groups.tensor == nullptr) return s;
  const ModelConfig& m = p.config;
  s.heads *= p.groups.tensor->size();
  s.q = p.state.work.all_q.data() + begin * s.heads * m.qk_head();
  s.kv = p.state.work.all_kv.data() + begin * s.heads * (m.nope + m.v_head);
  return s;
}

// The mean over all heads from that over this rank's.
template <typename T>
void add_target_over_ranks(Pass<T>& p, T* target, int64_t n) {
  if (p.groups.tensor == nullptr) return;
  add_over_tensor_group(p, target, n);
  scale_values(p.kernels, target, n, static_cast<T>(1) / static_cast<T>(p.groups.tensor->size()));
}

// The KL of layer l and the gradients of its indexer.
template <typename T>
void learn_indexer(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), k = p.objective.topk;
  sized(p, work.d_index_q, n * m.index_heads * m.index_dim);
  sized(p, work.d_index_w, n * m.index_heads);
  sized(p, work.d_index_k, n * m.index_dim);
  if (!p.gathered()) {
    gather_heads(p, l);
    // Row sums are of this rank's heads.
    const T* log_sum = p.groups.tensor == nullptr ? p.layer(l).log_sum.data() : nullptr;
    indexer_kl_dense<T>(p.kernels, {index_sequence(p, l, 0, n), all_heads_of_sequence(p, l, 0, n),
                                    p.batch.begins, log_sum, mask_of(p, l)});
    return index_backward(p, l);
  }
  for_each_selection(p, [&](int64_t begin, int64_t count, const TokenSequences& sequences) {
    T* target = work.target.data() + begin * k;  // attend_gathered wrote it
    add_target_over_ranks(p, target, count * k);
    indexer_kl_sparse<T>(p.kernels, {index_sequence(p, l, begin, count),
                                     p.layer(l).indices.data() + begin * k, target, k, sequences});
  });
  index_backward(p, l);
}

// kv of every head from c_kv.
template <typename T>
void expand(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const int64_t n = p.tokens(), kv = m.num_heads * (m.nope + m.v_head);
  const bool rounded = rounds_attention(p, l);
  const Product<T> up{a.c_kv.data(),
                      m.kv_lora,
                      n,
                      p.w + p.slots(l).kv_b,
                      kv,
                      m.kv_lora,
                      sized_if(!rounded, p, a.kv, n * kv),
                      c_kv_bf16(p, a),
                      sized_if(rounded, p, a.kv_bf16, n * kv)};
  linear_forward(p, up);
}

// The same for a device's arrays, whose copies a CPU measures.
template <typename T>
void measure_on_host(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  const Workspace<T>& work = p.state.work;
  const LayerState<T>& a = p.layer(l);
  const auto copy = [&](const Buffer<T>& from) { return fetched(p, from.data(), from.size()); };
  const std::vector<T> index_q = copy(work.index_q), index_w = copy(work.index_w);
  const std::vector<T> index_k = copy(work.index_k), q = copy(a.q), kv = copy(a.kv);
  const std::vector<T> k_pe = copy(a.k_pe);
  KernelContext host(p.kernels.pool().num_threads());
  for_each_sequence(p, [&](int64_t begin, int64_t count) {
    IndexerSequence<T> x;
    x.q = index_q.data() + begin * m.index_heads * m.index_dim;
    x.w = index_w.data() + begin * m.index_heads;
    x.k = index_k.data() + begin * m.index_dim;
    x.tokens = count;
    x.heads = m.index_heads;
    x.dim = m.index_dim;
    MlaSequence<T> attention = dense_sequence(p, l, begin, count);
    attention.q = q.data() + begin * m.num_heads * m.qk_head();
    attention.kv = kv.data() + begin * m.num_heads * (m.nope + m.v_head);
    attention.k_pe = k_pe.data() + begin * m.rope;
    indexer_health<T>(
        host, {x, attention, p.objective.measure_topk, &p.result.health[static_cast<size_t>(l)]});
  });
}

// Compares the indexer's choice with dense attention.
template <typename T>
void measure_indexer(Pass<T>& p, int64_t l) {
  if (p.gathered()) expand(p, l);
  gather_heads(p, l);
  if (p.kernels.device() != nullptr) return measure_on_host(p, l);
  const ModelConfig& m = p.config;
  const Workspace<T>& work = p.state.work;
  for_each_sequence(p, [&](int64_t begin, int64_t count) {
    IndexerSequence<T> x;
    x.q = work.index_q.data() + begin * m.index_heads * m.index_dim;
    x.w = work.index_w.data() + begin * m.index_heads;
    x.k = work.index_k.data() + begin * m.index_dim;
    x.tokens = count;
    x.heads = m.index_heads;
    x.dim = m.index_dim;
    indexer_health<T>(p.kernels,
                      {x, all_heads_of_sequence(p, l, begin, count), p.objective.measure_topk,
                       &p.result.health[static_cast<size_t>(l)]});
  });
}

// o [tokens, heads, v_head] in the expanded form, over everything or the layer's mask.
template <typename T>
void attend_dense(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const int64_t n = p.tokens();
  expand(p, l);
  if constexpr (std::is_same_v<T, float>) {
    if (rounds_attention(p, l)) {
      return mla_train_bf16(
          p.kernels,
          {bf16_sequence(p, l), p.batch.begins, a.kv_a.data() + m.kv_lora, m.kv_lora + m.rope,
           p.state.cos.data(), p.state.sin.data(), sized(p, a.k_pe_bf16, n * m.rope),
           sized(p, a.o_bf16, n * m.num_heads * m.v_head), sized(p, a.log_sum, n * m.num_heads)});
    }
  }
  ForwardOps<T>::attend_dense(p.kernels, dense_sequence(p, l, 0, n), p.batch.begins, mask_of(p, l),
                              sized(p, a.o, n * m.num_heads * m.v_head),
                              sized(p, a.log_sum, n * m.num_heads));
}

// From d_o: dq, dc_kv and dk_pe, and the gradient of W_kvb.
template <typename T>
void attend_dense_backward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), kv = m.num_heads * (m.nope + m.v_head);
  const bool rounded = rounds_attention(p, l);
  T* dkv = sized_if(!rounded, p, work.dkv, n * kv);
  uint16_t* dkv16 = sized_if(rounded, p, work.dkv_bf16, n * kv);
  if constexpr (std::is_same_v<T, float>) {
    const int64_t width = m.kv_lora + m.rope;
    if (rounded) {
      mla_backward_bf16(p.kernels, {bf16_sequence(p, l), p.batch.begins, a.k_pe_bf16.data(),
                                    a.o_bf16.data(), work.d_o_bf16.data(), a.log_sum.data(),
                                    p.state.cos.data(), p.state.sin.data(), work.dq_bf16.data(),
                                    dkv16, work.dkv_a_bf16.data() + m.kv_lora, width});
    }
  }
  if (!rounded) {
    mla_dense_backward<T>(p.kernels, {dense_sequence(p, l, 0, n), work.d_o.data(), work.dq.data(),
                                      dkv, work.dk_pe.data(), p.batch.begins, a.o.data(),
                                      a.log_sum.data(), mask_of(p, l)});
  }
  const int64_t kv_b = p.slots(l).kv_b;
  linear_backward<T>(p, {dkv, kv, a.c_kv.data(), m.kv_lora, n, p.w + kv_b, kv, m.kv_lora,
                         work.dc_kv.data(), false, p.grad + kv_b, dkv16, c_kv_bf16(p, a)});
}

// q_lora, q, c_kv, k_pe and kv once more, from what the layer kept.
template <typename T>
void recompute_expanded(Pass<T>& p, int64_t l) {
  queries_and_latents(p, l);
  if (p.layer(l).indices.empty()) expand(p, l);
}

// From dq, dc_kv and dk_pe: dnormed, and the gradients of the matrices and norms before them. Where
// attention is rounded, dk_pe is in its place already.
template <typename T>
void latents_backward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  const LayerSlots& s = p.slots(l);
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, width = m.kv_lora + m.rope;
  const bool rounded = rounds_attention(p, l);
  const auto eps = static_cast<T>(m.lora_norm_eps);
  T* dq_a = sized_if(!rounded, p, work.dq_a, n * m.q_lora);
  T* dkv_a = sized_if(!rounded, p, work.dkv_a, n * width);
  uint16_t* dq_a16 = sized_if(rounded, p, work.dq_a_bf16, n * m.q_lora);
  uint16_t* dkv_a16 = rounded ? work.dkv_a_bf16.data() : nullptr;
  rms_norm_backward<T>(
      p.kernels, {a.q_a.data(), m.q_lora, p.w + s.q_a_norm, work.dq_lora.data(), n, m.q_lora, eps,
                  dq_a, m.q_lora, p.grad + s.q_a_norm, true, dq_a16});
  rms_norm_backward<T>(
      p.kernels, {a.kv_a.data(), width, p.w + s.kv_a_norm, work.dc_kv.data(), n, m.kv_lora, eps,
                  dkv_a, width, p.grad + s.kv_a_norm, true, dkv_a16});
  if (!rounded) {
    copy_columns<T>(p.kernels, {work.dk_pe.data(), m.rope, n, m.rope, dkv_a + m.kv_lora, width});
  }
  if (!rounded || !keeps_rounded(p)) norm_input(p, l);
  const T* h = work.normed.data();
  const uint16_t* h16 = normed_bf16(p, l);
  T* dh = sized(p, work.dnormed, n * d);
  linear_backward<T>(p, {dq_a, m.q_lora, h, d, n, p.w + s.q_a, m.q_lora, d, dh, false,
                         p.grad + s.q_a, dq_a16, h16});
  linear_backward<T>(
      p, {dkv_a, width, h, d, n, p.w + s.kv_a, width, d, dh, true, p.grad + s.kv_a, dkv_a16, h16});
}

}  // namespace

template <typename T>
void attention_forward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const int64_t n = p.tokens(), d = m.hidden_size, v = m.num_heads * m.v_head;
  norm_input(p, l);
  p.trade_expanded(l);
  down_projections(p, l);
  queries_and_latents(p, l);
  const bool own = p.layer_config(l).indexer == IndexerKind::kOwn;
  if (own && (p.sparse() || p.objective.train_indexer || p.measures())) index_forward(p, l);
  a.selected.clear();
  if (own && p.sparse()) select(p, l);
  if (own && p.gathered()) {
    attend_gathered(p, l);
  } else {
    attend_dense(p, l);
  }
  if (own && p.objective.train_indexer) learn_indexer(p, l);
  if (own && p.measures()) measure_indexer(p, l);
  p.trade_expanded(l);
  Product<T> out{a.o.data(),
                 v,
                 n,
                 p.w + p.slots(l).o,
                 d,
                 v,
                 sized(p, a.x_mid, n * d),
                 rounds_attention(p, l) ? a.o_bf16.data() : nullptr};
  const bool adds = p.groups.tensor == nullptr && !p.objective.fp8 && rounds(p, n, {d, v});
  if (adds) out.add = a.x.data();
  linear_forward(p, out);
  add_over_tensor_group(p, a.x_mid.data(), n * d);
  if (!adds) add_values(p.kernels, a.x.data(), n * d, a.x_mid.data());
}

template <typename T>
void attention_backward(Pass<T>& p, int64_t l, T* dx) {
  const ModelConfig& m = p.config;
  const LayerSlots& s = p.slots(l);
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, qk = m.qk_head(), width = m.kv_lora + m.rope;
  const int64_t v = m.num_heads * m.v_head, q = m.num_heads * qk;
  const bool rounded = rounds_attention(p, l);
  linear_backward<T>(
      p, {dx, d, a.o.data(), v, n, p.w + s.o, d, v, sized_if(!rounded, p, work.d_o, n * v), false,
          p.grad + s.o, dx_bf16(p), rounded ? a.o_bf16.data() : nullptr,
          sized_if(rounded, p, work.d_o_bf16, n * v)});
  p.trade_expanded(l);
  if (p.objective.recompute) recompute_expanded(p, l);
  T* dq = sized_if(!rounded, p, work.dq, n * q);
  uint16_t* dq16 = sized_if(rounded, p, work.dq_bf16, n * q);
  sized(p, work.dc_kv, n * m.kv_lora);
  sized_if(!rounded, p, work.dk_pe, n * m.rope);
  sized_if(rounded, p, work.dkv_a_bf16, n * width);
  if (a.indices.empty()) {
    attend_dense_backward(p, l);
  } else {
    attend_gathered_backward(p, l);
  }
  add_over_tensor_group(p, work.dc_kv.data(), n * m.kv_lora);
  if (!rounded) {
    add_over_tensor_group(p, work.dk_pe.data(), n * m.rope);
    rope_turn(p.kernels, turn(p, dq + m.nope, q, qk, m.num_heads, RopeLayout::kInterleaved, true));
    rope_turn(p.kernels, turn(p, work.dk_pe.data(), m.rope, 0, 1, RopeLayout::kInterleaved, true));
  }
  linear_backward<T>(
      p, {dq, q, a.q_lora.data(), m.q_lora, n, p.w + s.q_b, q, m.q_lora,
          sized(p, work.dq_lora, n * m.q_lora), false, p.grad + s.q_b, dq16, q_lora_bf16(p, a)});
  add_over_tensor_group(p, work.dq_lora.data(), n * m.q_lora);
  p.trade_expanded(l);
  latents_backward(p, l);
  rms_norm_backward<T>(p.kernels, {a.x.data(), d, p.w + s.input_norm, work.dnormed.data(), n, d,
                                   static_cast<T>(m.norm_eps), dx, d, p.grad + s.input_norm, false,
                                   sized_dx_bf16(p)});
}

template void attention_forward(Pass<float>&, int64_t);
template void attention_forward(Pass<double>&, int64_t);
template void attention_backward(Pass<float>&, int64_t, float*);
template void attention_backward(Pass<double>&, int64_t, double*);

}  // namespace tamis
