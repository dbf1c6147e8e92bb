// The feed-forward half: a dense MLP, or DeepSeekMoE (V3 report, 2.1.2): routed experts and a
// shared one, no token dropped.
#include <algorithm>

#include "model/layer_context.h"

namespace tamis {
namespace {

// gate and up products of one MLP over `rows` rows of x.
void push_gate_up(std::vector<LinearArgs>& args, const MlpWeights& w, const float* x, int64_t rows,
                  float* gate, float* up) {
  args.push_back({x, w.gate.cols, rows, w.gate, gate, w.gate.rows});
  args.push_back({x, w.up.cols, rows, w.up, up, w.up.rows});
}

SwigluArgs activation(float* gate, const float* up, int64_t rows, int64_t width) {
  return {gate, up, rows, width, gate};
}

void activate(LayerContext& c, std::span<const SwigluArgs> args) {
  swiglus(c.kernels, args);
  for (const SwigluArgs& a : args) c.round(a.y, a.rows, a.width, a.width);
}

// The hidden state of an MLP whose rows are spread over the ranks, whole on every rank.
const float* gather_hidden(LayerContext& c, const float* part, int64_t rows, int64_t width) {
  if (c.group.size() == 1) return part;
  float* all = c.act.shared_all.get(rows * width);
  gather_columns(c, part, rows, width, all);
  return all;
}

// Every pair of a single token has the same row of x: products in float32 on a device read that.
bool shares_row(const LayerContext& c) {
  return c.tokens() == 1 && c.act.place.device != nullptr && !c.numerics.native();
}

MoePermuteArgs permutation(LayerContext& c) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens(), pairs = n * m.experts_per_token;
  MoePermuteArgs p;
  p.ids = c.act.expert_ids.get(pairs);
  p.tokens = n;
  p.num_chosen = m.experts_per_token;
  p.experts = m.num_experts;
  p.x = c.act.normed.data();
  p.width = m.hidden_size;
  p.row_of = c.act.expert_row_of.get(pairs);
  p.offsets = c.act.expert_offsets.get(m.num_experts + 1);
  p.rows = shares_row(c) ? nullptr : c.act.expert_rows.get(pairs * m.hidden_size);
  return p;
}

void route(LayerContext& c, const MoeWeights& w, const RmsNormArgs& norm, int64_t layer) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens();
  float* logits = c.act.router.get(n * m.num_experts);
  // An expert whose score is not a number is never chosen: without this check nobody would notice.
  check_finite(c, logits, m.num_experts, layer, 1);
  MoeGateArgs g;
  g.logits = logits;
  g.bias = w.bias.data();
  g.tokens = n;
  g.experts = m.num_experts;
  g.groups = m.num_groups;
  g.topk_group = m.topk_group;
  g.num_chosen = m.experts_per_token;
  g.norm_topk_prob = m.norm_topk_prob;
  g.routed_scaling_factor = m.routed_scaling_factor;
  g.softmax = m.softmax_scores;
  g.ids = c.act.expert_ids.get(n * m.experts_per_token);
  g.weights = c.act.expert_weights.get(n * m.experts_per_token);
  // The product in float32 in every precision: a rounding here changes which experts run.
  moe_route(c.kernels, {norm,
                        {c.act.normed.data(), m.hidden_size, n, w.router, logits, m.num_experts},
                        g,
                        permutation(c)});
  c.observe("router.logits", layer, logits, n, m.num_experts);
  c.observe("router.ids", layer, g.ids, n, m.experts_per_token);
  c.observe("router.weights", layer, g.weights, n, m.experts_per_token);
}

// Rows [first, last) of the sorted pairs belong to this rank's experts.
struct RowRange {
  int64_t first, last;
};

RowRange own_rows(LayerContext& c, const MoeWeights& w) {
  if (c.group.size() == 1) return {0, c.tokens() * c.config.experts_per_token};
  const int64_t* offsets = c.act.expert_offsets.data();
  return {offsets[w.first_expert],
          offsets[w.first_expert + static_cast<int64_t>(w.experts.size())]};
}

// Products over the rows of this rank's experts, and others in the same parallel loop.
void run_experts(LayerContext& c, const MoeWeights& w, std::span<const GroupedProduct> products,
                 std::span<const LinearArgs> beside) {
  GroupedLinearArgs g;
  g.products = products;
  g.offsets = c.act.expert_offsets.data() + w.first_expert;
  g.groups = static_cast<int64_t>(w.experts.size());
  g.rows = c.tokens() * c.config.experts_per_token;
  g.beside = beside;
  g.native = c.numerics.native();
  g.ue8m0 = c.numerics.ue8m0;
  g.int8 = c.numerics.int8();
  g.work = &c.act.linears;
  grouped_linear(c.kernels, g);
}

GroupedProduct grouped(const float* x, const ExpertTable& w, float* y) {
  return {x, w.weights[0].cols, w.weights, w.on_device, y, w.weights[0].rows};
}

// gate and up of routed and shared experts.
void expert_hidden(LayerContext& c, const MoeWeights& w, float* shared_gate, float* shared_up) {
  const int64_t values = c.tokens() * c.config.experts_per_token * c.config.moe_intermediate;
  const bool one = shares_row(c);
  const float* x = one ? c.act.normed.data() : c.act.expert_rows.data();
  GroupedProduct products[] = {grouped(x, w.gates, c.act.gate.get(values)),
                               grouped(x, w.ups, c.act.up.get(values))};
  for (GroupedProduct& p : products) p.x_stride = one ? 0 : p.x_stride;
  std::vector<LinearArgs>& beside = c.act.beside;
  beside.clear();
  if (w.shared) {
    push_gate_up(beside, *w.shared, c.act.normed.data(), c.tokens(), shared_gate, shared_up);
  }
  run_experts(c, w, products, beside);
}

// Each row of `down` was computed by one rank; adding zeros elsewhere shares it exactly. Negative
// zeros: x + -0 is x for every x, while -0 + 0 is 0.
void share_rows(LayerContext& c, const RowRange& own, int64_t pairs) {
  if (c.group.size() == 1) return;
  const int64_t d = c.config.hidden_size;
  float* down = c.act.down.data();
  std::fill_n(down, own.first * d, -0.0F);
  std::fill(down + own.last * d, down + pairs * d, -0.0F);
  c.group.all_reduce({down, static_cast<size_t>(pairs * d)});
}

}  // namespace

void mlp_forward(LayerContext& c, const MlpWeights& w, int64_t width) {
  const int64_t n = c.tokens(), d = c.config.hidden_size, own = w.gate.rows;
  float *gate = c.act.shared_gate.get(n * own), *up = c.act.shared_up.get(n * own);
  std::vector<LinearArgs>& args = c.act.linears;
  args.clear();
  push_gate_up(args, w, c.act.normed.data(), n, gate, up);
  c.numerics.project(c.kernels, args);
  const SwigluArgs all = activation(gate, up, n, own);
  activate(c, {&all, 1});
  const float* hidden = gather_hidden(c, gate, n, width);
  LinearArgs down{hidden, width, n, w.down, part_of(c, n, d, c.act.delta.data()), w.down.rows};
  c.numerics.project(c.kernels, {&down, 1});
  gather_columns(c, down.y, n, d, c.act.delta.data());
}

void moe_forward(LayerContext& c, const MoeWeights& w, const RmsNormArgs& norm, int64_t layer) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens(), d = m.hidden_size, pairs = n * m.experts_per_token;
  route(c, w, norm, layer);
  const int64_t shared_own = w.shared ? w.shared->gate.rows : 0;
  float* shared_gate = c.act.shared_gate.get(n * shared_own);
  float* shared_up = c.act.shared_up.get(n * shared_own);
  expert_hidden(c, w, shared_gate, shared_up);

  const RowRange own = own_rows(c, w);
  const int64_t first = own.first * m.moe_intermediate;
  const SwigluArgs both[] = {activation(c.act.gate.data() + first, c.act.up.data() + first,
                                        own.last - own.first, m.moe_intermediate),
                             activation(shared_gate, shared_up, n, shared_own)};
  activate(c, {both, w.shared ? size_t{2} : size_t{1}});
  std::vector<LinearArgs>& beside = c.act.beside;
  beside.clear();
  float* shared = nullptr;
  if (w.shared) {
    const int64_t width = shared_own * c.group.size();
    const float* hidden = gather_hidden(c, shared_gate, n, width);
    shared = c.act.shared_down.get(n * d);
    beside.push_back(
        {hidden, width, n, w.shared->down, part_of(c, n, d, shared), w.shared->down.rows});
  }
  const GroupedProduct down = grouped(c.act.gate.data(), w.downs, c.act.down.get(pairs * d));
  run_experts(c, w, {&down, 1}, beside);
  if (w.shared) gather_columns(c, beside.back().y, n, d, shared);
  share_rows(c, own, pairs);
  float* delta = c.act.delta.data();
  later(c, MoeCombineArgs{c.act.down.data(), c.act.expert_row_of.data(),
                          c.act.expert_weights.data(), n, m.experts_per_token, d, shared, delta});
  if (c.numerics.native()) later(c, RoundRowsArgs{delta, n, d, d});
}

}  // namespace tamis
