// The MLP and the mixture of experts, forward and backward (src/model/moe.cpp).
#include <algorithm>

#include "train/pass.h"

namespace tamis {
namespace {

template <typename T>
Product<T> linear_of(const T* x, int64_t m, const T* w, int64_t rows, int64_t cols, T* y) {
  return {x, cols, m, w, rows, cols, y};
}

template <typename T>
bool is_moe(const Pass<T>& p, int64_t l) {
  return p.layer_config(l).ffn == FfnKind::kMoe;
}

// Width of the dense MLP or of the shared expert; 0 if there is none.
template <typename T>
int64_t mlp_width(const Pass<T>& p, int64_t l) {
  return is_moe(p, l) ? p.config.moe_intermediate * p.config.num_shared_experts
                      : p.config.intermediate;
}

// y [tokens, hidden] of the dense MLP or the shared expert, from g = work.normed.
template <typename T>
void mlp_forward(Pass<T>& p, int64_t l, T* y) {
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const MlpSlots& s = p.slots(l).mlp;
  const int64_t n = p.tokens(), d = p.config.hidden_size, width = mlp_width(p, l);
  const T* g = work.normed.data();
  const Product<T> list[] = {linear_of(g, n, p.w + s.gate, width, d, sized(a.gate, n * width)),
                             linear_of(g, n, p.w + s.up, width, d, sized(a.up, n * width))};
  ForwardOps<T>::products(p.kernels, list);
  T* act = sized(work.act, n * width);
  ForwardOps<T>::swiglu(p.kernels, a.gate.data(), a.up.data(), n * width, act);
  const Product<T> down = linear_of<T>(act, n, p.w + s.down, d, width, y);
  ForwardOps<T>::products(p.kernels, {&down, 1});
}

// From dy: the gradients of the three matrices; dg = or += that of g.
template <typename T>
void mlp_backward(Pass<T>& p, int64_t l, const T* dy, T* dg, bool add) {
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const MlpSlots& s = p.slots(l).mlp;
  const int64_t n = p.tokens(), d = p.config.hidden_size, width = mlp_width(p, l);
  T* act = sized(work.act, n * width);
  ForwardOps<T>::swiglu(p.kernels, a.gate.data(), a.up.data(), n * width, act);
  products_backward<T>(p.kernels, {dy, d, act, width, n, p.w + s.down, d, width,
                                   sized(work.dact, n * width), false, p.grad + s.down});
  T *dgate = sized(work.dgate, n * width), *dup = sized(work.dup, n * width);
  swiglu_backward<T>(p.kernels,
                     {a.gate.data(), a.up.data(), work.dact.data(), n, width, dgate, dup});
  const T* g = work.normed.data();
  products_backward<T>(p.kernels,
                       {dgate, width, g, d, n, p.w + s.gate, width, d, dg, add, p.grad + s.gate});
  products_backward<T>(p.kernels,
                       {dup, width, g, d, n, p.w + s.up, width, d, dg, true, p.grad + s.up});
}

// ---- routed experts

template <typename T>
void route(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const LayerSlots& s = p.slots(l);
  const int64_t n = p.tokens(), pairs = n * m.experts_per_token;
  const Product<T> logits =
      linear_of<T>(p.state.work.normed.data(), n, p.w + s.router, m.num_experts, m.hidden_size,
                   sized(a.router, n * m.num_experts));
  ForwardOps<T>::products(p.kernels, {&logits, 1});
  ForwardOps<T>::moe_gate(p.kernels, m, a.router.data(), p.w + s.router_bias, n,
                          sized(a.expert_ids, pairs), sized(a.expert_weights, pairs));
  for (const int32_t id : a.expert_ids) {
    ++p.result.load[static_cast<size_t>(l)][static_cast<size_t>(id)];
  }
}

// Rows sorted by expert, tokens ascending within one.
template <typename T>
void permute(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const int64_t d = m.hidden_size, pairs = p.tokens() * m.experts_per_token;
  int64_t* offsets = zeroed(a.expert_offsets, m.num_experts + 1);
  for (int64_t i = 0; i < pairs; ++i) ++offsets[a.expert_ids[static_cast<size_t>(i)] + 1];
  for (int64_t e = 0; e < m.num_experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int64_t> next(offsets, offsets + m.num_experts);
  sized(a.expert_row_of, pairs);
  sized(a.expert_rows, pairs * d);
  for (int64_t i = 0; i < pairs; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = next[static_cast<size_t>(a.expert_ids[at])]++;
    a.expert_row_of[at] = static_cast<int32_t>(row);
    std::copy_n(p.state.work.normed.data() + i / m.experts_per_token * d, d,
                a.expert_rows.data() + row * d);
  }
}

// body(slots, first row, rows) for each expert that has rows.
template <typename T, typename Body>
void for_each_expert(const Pass<T>& p, int64_t l, const Body& body) {
  const std::vector<int64_t>& offsets = p.layer(l).expert_offsets;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e];
    if (rows > 0) body(p.slots(l).experts[e], offsets[e], rows);
  }
}

template <typename T>
void experts_forward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const int64_t d = m.hidden_size, width = m.moe_intermediate;
  const int64_t pairs = p.tokens() * m.experts_per_token;
  sized(a.expert_gate, pairs * width);
  sized(a.expert_up, pairs * width);
  sized(a.expert_down, pairs * d);
  T* act = sized(p.state.work.act, pairs * width);
  std::vector<Product<T>> in, out;
  for_each_expert(p, l, [&](const MlpSlots& s, int64_t first, int64_t rows) {
    const T* x = a.expert_rows.data() + first * d;
    in.push_back(linear_of<T>(x, rows, p.w + s.gate, width, d,
                              &a.expert_gate[static_cast<size_t>(first * width)]));
    in.push_back(linear_of<T>(x, rows, p.w + s.up, width, d,
                              &a.expert_up[static_cast<size_t>(first * width)]));
    out.push_back(linear_of<T>(act + first * width, rows, p.w + s.down, d, width,
                               &a.expert_down[static_cast<size_t>(first * d)]));
  });
  ForwardOps<T>::products(p.kernels, in);
  ForwardOps<T>::swiglu(p.kernels, a.expert_gate.data(), a.expert_up.data(), pairs * width, act);
  ForwardOps<T>::products(p.kernels, out);
}

// out += sum over slots of weight * the expert's row, slots in order.
template <typename T>
void add_experts(Pass<T>& p, int64_t l, T* out) {
  const LayerState<T>& a = p.layer(l);
  const int64_t d = p.config.hidden_size, chosen = p.config.experts_per_token;
  p.kernels.pool().run(p.tokens(), [&](int64_t t, int) {
    for (int64_t pair = t * chosen; pair < (t + 1) * chosen; ++pair) {
      const T* row = a.expert_down.data() + a.expert_row_of[static_cast<size_t>(pair)] * d;
      const T weight = a.expert_weights[static_cast<size_t>(pair)];
      for (int64_t i = 0; i < d; ++i) out[t * d + i] += weight * row[i];
    }
  });
}

// From work.ddown: the gradients of the experts' matrices, and drows.
template <typename T>
void experts_backward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t d = m.hidden_size, width = m.moe_intermediate;
  const int64_t pairs = p.tokens() * m.experts_per_token;
  T *act = sized(work.act, pairs * width), *dact = sized(work.dact, pairs * width);
  T *dgate = sized(work.dgate, pairs * width), *dup = sized(work.dup, pairs * width);
  T* drows = sized(work.drows, pairs * d);
  ForwardOps<T>::swiglu(p.kernels, a.expert_gate.data(), a.expert_up.data(), pairs * width, act);
  std::vector<ProductBackward<T>> down, gate, up;
  for_each_expert(p, l, [&](const MlpSlots& s, int64_t first, int64_t rows) {
    const int64_t hidden = first * width, wide = first * d;
    const T* x = a.expert_rows.data() + wide;
    down.push_back({work.ddown.data() + wide, d, act + hidden, width, rows, p.w + s.down, d, width,
                    dact + hidden, false, p.grad + s.down});
    gate.push_back({dgate + hidden, width, x, d, rows, p.w + s.gate, width, d, drows + wide, false,
                    p.grad + s.gate});
    up.push_back(
        {dup + hidden, width, x, d, rows, p.w + s.up, width, d, drows + wide, true, p.grad + s.up});
  });
  products_backward<T>(p.kernels, down);
  swiglu_backward<T>(p.kernels,
                     {a.expert_gate.data(), a.expert_up.data(), dact, pairs, width, dgate, dup});
  products_backward<T>(p.kernels, gate);
  products_backward<T>(p.kernels, up);
}

// From the gradients of the experts' weights, and the balance loss: dg += that of g.
template <typename T>
void router_backward(Pass<T>& p, int64_t l, T* dg) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), chosen = m.experts_per_token;
  sized(work.drouter, n * m.num_experts);
  for (size_t i = 0; i + 1 < p.batch.begins.size(); ++i) {
    const int64_t b = p.batch.begins[i];
    double balance = 0;
    moe_gate_backward<T>(
        p.kernels, {a.router.data() + b * m.num_experts, a.expert_ids.data() + b * chosen,
                    work.dexpert_weights.data() + b * chosen, p.batch.begins[i + 1] - b,
                    m.num_experts, chosen, m.norm_topk_prob, m.routed_scaling_factor,
                    p.objective.balance_scale, work.drouter.data() + b * m.num_experts, &balance});
    p.result.balance[static_cast<size_t>(l)] += balance;
  }
  const int64_t router = p.slots(l).router;
  products_backward<T>(p.kernels,
                       {work.drouter.data(), m.num_experts, work.normed.data(), m.hidden_size, n,
                        p.w + router, m.num_experts, m.hidden_size, dg, true, p.grad + router});
}

template <typename T>
void norm_input(Pass<T>& p, int64_t l) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  ForwardOps<T>::rms_norm(p.kernels, p.layer(l).x_mid.data(), d,
                          p.w + p.slots(l).post_attention_norm, n, d,
                          static_cast<T>(p.config.norm_eps), sized(p.state.work.normed, n * d));
}

}  // namespace

template <typename T>
void ffn_forward(Pass<T>& p, int64_t l, T* out) {
  LayerState<T>& a = p.layer(l);
  const int64_t values = p.tokens() * p.config.hidden_size;
  norm_input(p, l);
  if (is_moe(p, l)) {
    route(p, l);
    permute(p, l);
    experts_forward(p, l);
  }
  if (mlp_width(p, l) > 0) {
    mlp_forward(p, l, out);
  } else {
    std::fill_n(out, values, T{0});
  }
  if (is_moe(p, l)) add_experts(p, l, out);
  for (int64_t i = 0; i < values; ++i) out[i] += a.x_mid[static_cast<size_t>(i)];
}

template <typename T>
void ffn_backward(Pass<T>& p, int64_t l, T* dx) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, pairs = n * m.experts_per_token;
  norm_input(p, l);
  T* dg = zeroed(work.dnormed, n * d);
  if (mlp_width(p, l) > 0) mlp_backward<T>(p, l, dx, dg, false);
  if (is_moe(p, l)) {
    moe_combine_backward<T>(
        p.kernels,
        {a.expert_down.data(), a.expert_row_of.data(), a.expert_weights.data(), dx, n,
         m.experts_per_token, d, sized(work.ddown, pairs * d), sized(work.dexpert_weights, pairs)});
    experts_backward(p, l);
    moe_permute_backward<T>(
        p.kernels, {work.drows.data(), a.expert_row_of.data(), n, m.experts_per_token, d, dg});
    router_backward(p, l, dg);
  }
  const int64_t norm = p.slots(l).post_attention_norm;
  rms_norm_backward<T>(p.kernels, {a.x_mid.data(), d, p.w + norm, dg, n, d,
                                   static_cast<T>(m.norm_eps), dx, d, p.grad + norm});
}

template void ffn_forward(Pass<float>&, int64_t, float*);
template void ffn_forward(Pass<double>&, int64_t, double*);
template void ffn_backward(Pass<float>&, int64_t, float*);
template void ffn_backward(Pass<double>&, int64_t, double*);

}  // namespace tamis
