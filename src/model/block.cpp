#include <algorithm>

#include "model/layer_context.h"

namespace tamis {
void later(LayerContext& c, const TokenOp& op, int lane) { c.act.waiting.push_back({op, lane}); }

void run_waiting(LayerContext& c) {
  token_ops(c.kernels, c.tokens(), c.act.waiting);
  c.act.waiting.clear();
}

CheckFiniteArgs finite_check(LayerContext& c, const float* x, int64_t width, int64_t layer) {
  return {x,
          c.tokens(),
          width,
          nullptr,
          c.staged.tokens.sequence,
          static_cast<int32_t>(layer),
          c.staged.failed};
}

void check_finite(LayerContext& c, const float* x, int64_t width, int64_t layer, int lane) {
  later(c, finite_check(c, x, width, layer), lane);
}

float* part_of(LayerContext& c, int64_t rows, int64_t width, float* y) {
  return c.group.size() == 1 ? y : c.act.part.get(rows * (width / c.group.size()));
}

void gather_columns(LayerContext& c, const float* part, int64_t rows, int64_t width, float* y) {
  const int64_t ranks = c.group.size();
  if (ranks == 1) return;
  const int64_t share = width / ranks;
  const auto n = static_cast<size_t>(rows * share);
  float* all = c.act.gathered.get(rows * width);
  c.group.all_gather({part, n}, {all, n * static_cast<size_t>(ranks)});
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t t = 0; t < rows; ++t) {
      std::copy_n(all + (r * rows + t) * share, share, y + t * width + r * share);
    }
  }
}

RmsNormArgs next_norm(LayerContext& c, const Parameters& weight) {
  const int64_t d = c.config.hidden_size;
  const float* delta = c.act.delta_is_zero ? nullptr : c.act.delta.data();
  c.act.delta_is_zero = false;
  return {c.act.x.data(),
          d,
          delta,
          weight.data(),
          c.tokens(),
          d,
          c.config.norm_eps,
          c.act.normed.data(),
          d,
          c.numerics.native()};
}

void add_and_norm(LayerContext& c, const Parameters& weight) { later(c, next_norm(c, weight)); }

void block_forward(LayerContext& c, const LayerWeights& w, const LayerConfig& kind, int64_t layer) {
  const int64_t d = c.config.hidden_size, n = c.tokens();
  float *x = c.act.x.data(), *delta = c.act.delta.data();
  const RmsNormArgs input_norm = next_norm(c, w.input_norm);
  later(c, input_norm);
  const bool late = mla_project(c, w.attention);
  c.observe("hidden", layer, x, n, d);
  mla_forward(c, w.attention, kind, layer, late ? &input_norm : nullptr);
  c.observe("attn_out", layer, delta, n, d);
  const RmsNormArgs norm = next_norm(c, w.post_attention_norm);
  if (kind.ffn == FfnKind::kDense) {
    later(c, norm);
    run_waiting(c);
    mlp_forward(c, w.mlp, c.config.intermediate);
  } else {
    moe_forward(c, w.moe, norm, layer);
  }
  if (c.observer != nullptr) run_waiting(c);
  c.observe("mlp_out", layer, delta, n, d);
  if (!uses_hadamard(c) && layer + 1 < c.config.num_layers()) {
    // Beside the next layer's norms, instead of before its first.
    c.act.unchecked = finite_check(c, delta, d, layer);
  } else {
    check_finite(c, delta, d, layer);
  }
}

}  // namespace tamis
