// The MLP and the mixture of experts, forward and backward (src/model/moe.cpp).
#include "train/exchange.h"
#include "train/linear_layers.h"

namespace tamis {
namespace {

template <typename T>
Product<T> linear_of(const T* x, int64_t m, const T* w, int64_t rows, int64_t cols, T* y,
                     const uint16_t* x_bf16 = nullptr) {
  return {x, cols, m, w, rows, cols, y, x_bf16};
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

// Whether the product at the end of the MLP adds the stream that its rows belong to.
template <typename T>
bool adds_stream(const Pass<T>& p, int64_t l) {
  return mlp_width(p, l) > 0 && p.groups.tensor == nullptr && !p.objective.fp8 &&
         rounds(p, p.tokens(), {p.config.hidden_size, mlp_width(p, l)});
}

// Where SwiGLU's rounded output goes: one that is kept, or one for all layers.
template <typename T>
Buffer<uint16_t>& act_place(const Pass<T>& p, Buffer<uint16_t>& kept) {
  return keeps_rounded(p) ? kept : p.state.work.act_bf16;
}

// y [tokens, hidden] of the dense MLP or the shared expert, from g = work.normed.
template <typename T>
void mlp_forward(Pass<T>& p, int64_t l, T* y) {
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const MlpSlots& s = p.slots(l).mlp;
  const int64_t n = p.tokens(), d = p.config.hidden_size, width = mlp_width(p, l);
  const bool rounded = rounds(p, n, {d, width});
  const T* g = work.normed.data();
  const uint16_t* g16 = rounded ? work.normed_bf16.data() : nullptr;
  const Product<T> list[] = {
      linear_of(g, n, p.w + s.gate, width, d, sized(p, a.gate, n * width), g16),
      linear_of(g, n, p.w + s.up, width, d, sized(p, a.up, n * width), g16)};
  linear_forward<T>(p, list);
  T* act = sized_if(!rounded, p, work.act, n * width);
  uint16_t* act16 = sized_if(rounded, p, act_place(p, a.act_bf16), n * width);
  ForwardOps<T>::swiglu(p.kernels, a.gate.data(), a.up.data(), n * width, act, act16);
  Product<T> down = linear_of<T>(act, n, p.w + s.down, d, width, y, act16);
  if (adds_stream(p, l)) down.add = a.x_mid.data();
  linear_forward(p, down);
}

// The gradients of gate and up of n rows side by side, [n, 2 width].
template <typename T>
const uint16_t* rounded_gradients(Pass<T>& p, SwigluBackwardArgs<T> of) {
  of.bf16_stride = 2 * of.width;
  of.dgate_bf16 = sized(p, p.state.work.dgate_up_bf16, of.rows * of.bf16_stride);
  of.dup_bf16 = of.dgate_bf16 + of.width;
  swiglu_backward<T>(p.kernels, of);
  return of.dgate_bf16;
}

// The same apart, for products in which the two may not share blocks: float32 or bf16.
template <typename T>
struct GateAndUp {
  const T *dgate = nullptr, *dup = nullptr;
  const uint16_t *dgate_bf16 = nullptr, *dup_bf16 = nullptr;
};
template <typename T>
GateAndUp<T> gradients_apart(Pass<T>& p, SwigluBackwardArgs<T> of, bool bf16) {
  Workspace<T>& work = p.state.work;
  const int64_t values = of.rows * of.width;
  of.dgate = sized_if(!bf16, p, work.dgate, values);
  of.dup = sized_if(!bf16, p, work.dup, values);
  if (bf16) {
    of.dgate_bf16 = sized(p, work.dgate_up_bf16, 2 * values);
    of.dup_bf16 = of.dgate_bf16 + values;
  }
  swiglu_backward<T>(p.kernels, of);
  return {of.dgate, of.dup, of.dgate_bf16, of.dup_bf16};
}

// From dy, the gradient of the stream: those of the three matrices; dg = or += that of g.
template <typename T>
void mlp_backward(Pass<T>& p, int64_t l, const T* dy, T* dg, bool add) {
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const MlpSlots& s = p.slots(l).mlp;
  const int64_t n = p.tokens(), d = p.config.hidden_size, width = mlp_width(p, l);
  const bool rounded = rounds(p, n, {d, width});
  T* act = sized_if(!rounded, p, work.act, n * width);
  uint16_t* act16 = sized_if(rounded, p, act_place(p, a.act_bf16), n * width);
  if (!rounded || !keeps_rounded(p)) {
    ForwardOps<T>::swiglu(p.kernels, a.gate.data(), a.up.data(), n * width, act, act16);
  }
  linear_backward<T>(
      p, {dy, d, act, width, n, p.w + s.down, d, width, sized(p, work.dact, n * width), false,
          p.grad + s.down, dx_bf16(p), act16});
  const T* g = work.normed.data();
  const uint16_t* g16 = rounded ? work.normed_bf16.data() : nullptr;
  const SwigluBackwardArgs<T> back{a.gate.data(), a.up.data(), work.dact.data(), n, width};
  if (rounded && !p.objective.fp8) {  // gate and up follow each other: one product of both
    const uint16_t* d16 = rounded_gradients<T>(p, back);
    return linear_backward<T>(p, {nullptr, 2 * width, g, d, n, p.w + s.gate, 2 * width, d, dg, add,
                                  p.grad + s.gate, d16, g16});
  }
  const GateAndUp<T> to = gradients_apart(p, back, rounded);
  linear_backward<T>(p, {to.dgate, width, g, d, n, p.w + s.gate, width, d, dg, add, p.grad + s.gate,
                         to.dgate_bf16, g16});
  linear_backward<T>(
      p, {to.dup, width, g, d, n, p.w + s.up, width, d, dg, true, p.grad + s.up, to.dup_bf16, g16});
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
                   sized(p, a.router, n * m.num_experts));
  ForwardOps<T>::products(p.kernels, {&logits, 1});
  ForwardOps<T>::moe_gate(p.kernels, m, a.router.data(), p.w + s.router_bias, n,
                          sized(p, a.expert_ids, pairs), sized(p, a.expert_weights, pairs));
}

// Rows for this rank's experts from one batch, from row `first` on, and the gradients that it adds
// to, as if the table began there.
template <typename T>
struct ExpertSource {
  ExpertRows rows;
  int64_t first = 0;
  T* grad = nullptr;
};

// The batch at work; with a group of experts, those of its ranks in order. Rows of different
// batches are never multiplied together, so every product is that of a rank alone.
template <typename T>
std::vector<ExpertSource<T>> expert_sources(const Pass<T>& p, int64_t l) {
  const int64_t experts = p.config.num_experts;
  const Group* group = p.groups.experts;
  if (group == nullptr) {
    return {{{p.state.expert_offsets.data() + l * (experts + 1), experts,
              p.tokens() * p.config.experts_per_token},
             0,
             p.grad}};
  }
  const SourceRows& rows = p.layer(l).sources;
  const ParameterTable::Range shared = p.table.experts();
  std::vector<ExpertSource<T>> sources;
  for (int r = 0; r < group->size(); ++r) {
    const auto at = static_cast<size_t>(r);
    const int64_t block = r < group->rank() ? r : r - 1;
    T* grad = p.grad;
    if (p.grad != nullptr && r != group->rank()) {
      grad += p.table.size() + block * shared.size() - shared.begin;
    }
    sources.push_back({{rows.offsets[at].data(), experts / group->size(), rows.offsets[at].back()},
                       rows.first[at],
                       grad});
  }
  return sources;
}

// Whether the experts' rows and what comes of them are kept in bf16; never those that ranks send.
template <typename T>
bool rounds_expert_rows(const Pass<T>& p) {
  const ModelConfig& m = p.config;
  return p.groups.experts == nullptr &&
         rounds(p, p.tokens() * m.experts_per_token, {m.hidden_size, m.moe_intermediate});
}

// Rows of this rank's experts.
template <typename T>
int64_t expert_row_count(const Pass<T>& p, int64_t l) {
  return p.groups.experts == nullptr ? p.tokens() * p.config.experts_per_token
                                     : received_rows(p, l);
}

// Rows sorted by expert, tokens ascending within one, where their experts are.
template <typename T>
void permute(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const bool alone = p.groups.experts == nullptr;
  const int64_t d = m.hidden_size, pairs = p.tokens() * m.experts_per_token;
  const bool rounded = rounds_expert_rows(p);
  T* rows = sized_if(!rounded, p, alone ? a.expert_rows : p.state.work.drows, pairs * d);
  ForwardOps<T>::permute(p.kernels, m, a.expert_ids.data(), p.state.work.normed.data(), p.tokens(),
                         sized(p, a.expert_row_of, pairs),
                         p.state.expert_offsets.data() + l * (m.num_experts + 1), rows,
                         sized_if(rounded, p, a.expert_rows_bf16, pairs * d));
  if (alone) return;
  exchange_counts(p, l);
  send_to_experts(p, l, rows, d, sized(p, a.expert_rows, received_rows(p, l) * d));
}

// Values from one expert's matrices to the next one's.
template <typename T>
int64_t expert_stride(const Pass<T>& p, int64_t l) {
  const std::vector<MlpSlots>& experts = p.slots(l).experts;
  return experts.size() > 1 ? experts[1].gate - experts[0].gate : 0;
}

template <typename T>
void experts_forward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const bool alone = p.groups.experts == nullptr;
  const int64_t d = m.hidden_size, width = m.moe_intermediate, stride = expert_stride(p, l);
  const int64_t all = expert_row_count(p, l), pairs = p.tokens() * m.experts_per_token;
  const MlpSlots& s = p.slots(l).experts[0];
  const bool rounded = rounds_expert_rows(p);  // then there is one source
  T *act = sized_if(!rounded, p, p.state.work.act, all * width), *x = a.expert_rows.data();
  uint16_t* act16 = sized_if(rounded, p, act_place(p, a.expert_act_bf16), all * width);
  const uint16_t* x16 = rounded ? a.expert_rows_bf16.data() : nullptr;
  T *gate = sized(p, a.expert_gate, all * width), *up = sized(p, a.expert_up, all * width);
  T* y = sized(p, alone ? a.expert_down : p.state.work.exchanged, all * d);
  const std::vector<ExpertSource<T>> sources = expert_sources(p, l);
  for (const ExpertSource<T>& source : sources) {
    const int64_t in_at = source.first * d, at = source.first * width;
    const ExpertProduct<T> in[] = {{x + in_at, p.w + s.gate, stride, width, d, gate + at, x16},
                                   {x + in_at, p.w + s.up, stride, width, d, up + at, x16}};
    expert_linear_forward<T>(p, source.rows, in);
  }
  ForwardOps<T>::swiglu(p.kernels, gate, up, all * width, act, act16);
  for (const ExpertSource<T>& source : sources) {
    const ExpertProduct<T> out{act + source.first * width, p.w + s.down, stride, d, width,
                               y + source.first * d,       act16};
    expert_linear_forward<T>(p, source.rows, {&out, 1});
  }
  if (!alone) return_from_experts(p, l, y, d, sized(p, a.expert_down, pairs * d));
}

// y = x W^T of every expert forward: dx = or += dy W, dw += dy^T x.
template <typename T>
struct ExpertBackward {
  const T *dy = nullptr, *x = nullptr;  // [pairs, rows], [pairs, cols]
  int64_t w = 0, rows = 0, cols = 0;    // the first expert's matrix, a place in the table
  T* dx = nullptr;
  bool add_dx = false;
  const uint16_t *dy_bf16 = nullptr, *x_bf16 = nullptr;  // only where there is one source
};

template <typename T>
void expert_backward(Pass<T>& p, int64_t l, const ExpertBackward<T>& e) {
  const int64_t stride = expert_stride(p, l);
  for (const ExpertSource<T>& source : expert_sources(p, l)) {
    const int64_t x_at = source.first * e.cols;
    expert_linear_backward<T>(
        p, source.rows,
        {e.dy + source.first * e.rows, e.x + x_at, p.w + e.w, stride, e.rows, e.cols, e.dx + x_at,
         e.add_dx, source.grad + e.w, e.dy_bf16, e.x_bf16});
  }
}

// From work.ddown: the gradients of the experts' matrices, and drows.
template <typename T>
void experts_backward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const bool alone = p.groups.experts == nullptr;
  const int64_t d = m.hidden_size, width = m.moe_intermediate;
  const int64_t all = expert_row_count(p, l), pairs = p.tokens() * m.experts_per_token;
  const MlpSlots& s = p.slots(l).experts[0];
  const bool rounded = rounds_expert_rows(p);
  const int64_t values = all * width;
  T *act = sized_if(!rounded, p, work.act, values), *dact = sized(p, work.dact, values);
  uint16_t* act16 = sized_if(rounded, p, act_place(p, a.expert_act_bf16), values);
  const uint16_t* x16 = rounded ? a.expert_rows_bf16.data() : nullptr;
  const uint16_t* ddown16 = rounded ? work.ddown_bf16.data() : nullptr;
  const T *x = a.expert_rows.data(), *ddown = work.ddown.data();
  T* drows = sized(p, work.drows, pairs * d);
  if (!alone) {
    T* received = sized(p, work.exchanged, all * d);
    send_to_experts(p, l, ddown, d, received);
    ddown = received;
    drows = sized(p, work.ddown, all * d);
  }
  if (!rounded || !keeps_rounded(p)) {
    ForwardOps<T>::swiglu(p.kernels, a.expert_gate.data(), a.expert_up.data(), values, act, act16);
  }
  expert_backward<T>(p, l, {ddown, act, s.down, d, width, dact, false, ddown16, act16});
  const SwigluBackwardArgs<T> back{a.expert_gate.data(), a.expert_up.data(), dact, all, width};
  if (rounded && !p.objective.fp8) {
    const uint16_t* d16 = rounded_gradients<T>(p, back);
    return expert_backward<T>(p, l, {nullptr, x, s.gate, 2 * width, d, drows, false, d16, x16});
  }
  const GateAndUp<T> to = gradients_apart(p, back, rounded);
  expert_backward<T>(p, l, {to.dgate, x, s.gate, width, d, drows, false, to.dgate_bf16, x16});
  expert_backward<T>(p, l, {to.dup, x, s.up, width, d, drows, true, to.dup_bf16, x16});
  if (!alone) return_from_experts(p, l, drows, d, work.drows.data());
}

// From the gradients of the experts' weights, and the balance loss: dg += that of g.
template <typename T>
void router_backward(Pass<T>& p, int64_t l, T* dg) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), chosen = m.experts_per_token;
  sized(p, work.drouter, n * m.num_experts);
  std::vector<MoeGateBackwardArgs<T>> sequences;
  double* balance = p.state.balance.data() + l * p.batch.sequences();
  for (size_t i = 0; i + 1 < p.batch.begins.size(); ++i) {
    const int64_t b = p.batch.begins[i];
    sequences.push_back({a.router.data() + b * m.num_experts, a.expert_ids.data() + b * chosen,
                         work.dexpert_weights.data() + b * chosen, p.batch.begins[i + 1] - b,
                         m.num_experts, chosen, m.norm_topk_prob, m.routed_scaling_factor,
                         p.objective.balance_scale, work.drouter.data() + b * m.num_experts,
                         balance + i});
  }
  moe_gate_backwards<T>(p.kernels, sequences);
  const int64_t router = p.slots(l).router;
  products_backward<T>(p.kernels,
                       {work.drouter.data(), m.num_experts, work.normed.data(), m.hidden_size, n,
                        p.w + router, m.num_experts, m.hidden_size, dg, true, p.grad + router});
}

template <typename T>
void norm_input(Pass<T>& p, int64_t l) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  // Nothing but products that round it reads it then.
  const bool alone = !is_moe(p, l) && !p.objective.fp8 && rounds(p, n, {d, mlp_width(p, l)});
  ForwardOps<T>::rms_norm(
      p.kernels, p.layer(l).x_mid.data(), d, p.w + p.slots(l).post_attention_norm, n, d,
      static_cast<T>(p.config.norm_eps), sized_if(!alone, p, p.state.work.normed, n * d),
      sized_if(rounds(p, n, {d}), p, p.state.work.normed_bf16, n * d));
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
    zero(p.kernels, out, values * static_cast<int64_t>(sizeof(T)));
  }
  if (is_moe(p, l)) {
    add_experts<T>(p.kernels,
                   {a.expert_down.data(), a.expert_row_of.data(), a.expert_weights.data(),
                    p.tokens(), p.config.experts_per_token, p.config.hidden_size, out});
  }
  add_over_tensor_group(p, out, values);
  if (!adds_stream(p, l)) add_values(p.kernels, a.x_mid.data(), values, out);
}

template <typename T>
void ffn_backward(Pass<T>& p, int64_t l, T* dx) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, pairs = n * m.experts_per_token;
  norm_input(p, l);
  T* dg = sized(p, work.dnormed, n * d);
  if (mlp_width(p, l) > 0) {
    mlp_backward<T>(p, l, dx, dg, false);
  } else {
    zero(p.kernels, dg, n * d * static_cast<int64_t>(sizeof(T)));
  }
  if (is_moe(p, l)) {
    const bool rounded = rounds_expert_rows(p);
    moe_combine_backward<T>(
        p.kernels,
        {a.expert_down.data(), a.expert_row_of.data(), a.expert_weights.data(), dx, n,
         m.experts_per_token, d, sized_if(!rounded, p, work.ddown, pairs * d),
         sized(p, work.dexpert_weights, pairs), sized_if(rounded, p, work.ddown_bf16, pairs * d)});
    add_over_tensor_group(p, work.dexpert_weights.data(), pairs);
    experts_backward(p, l);
    moe_permute_backward<T>(
        p.kernels, {work.drows.data(), a.expert_row_of.data(), n, m.experts_per_token, d, dg});
  }
  add_over_tensor_group(p, dg, n * d);
  if (is_moe(p, l)) router_backward(p, l, dg);
  const int64_t norm = p.slots(l).post_attention_norm;
  rms_norm_backward<T>(p.kernels,
                       {a.x_mid.data(), d, p.w + norm, dg, n, d, static_cast<T>(m.norm_eps), dx, d,
                        p.grad + norm, false, sized_dx_bf16(p)});
}

template void ffn_forward(Pass<float>&, int64_t, float*);
template void ffn_forward(Pass<double>&, int64_t, double*);
template void ffn_backward(Pass<float>&, int64_t, float*);
template void ffn_backward(Pass<double>&, int64_t, double*);

}  // namespace tamis
