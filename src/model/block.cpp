#include <algorithm>

#include "model/layer_context.h"

namespace tamis {
void check_finite(LayerContext& c, const float* x, int64_t width, int64_t layer) {
  c.act.checks.rows.push_back({x, c.tokens(), width, nullptr, c.staged.tokens.sequence,
                               static_cast<int32_t>(layer), c.staged.failed});
}

void run_checks(LayerContext& c) {
  check_all(c.kernels, c.act.checks);
  c.act.checks.rows.clear();
  c.act.checks.flags.clear();
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

void block_forward(LayerContext& c, const LayerWeights& w, const LayerConfig& kind, int64_t layer) {
  const int64_t d = c.config.hidden_size, n = c.tokens();
  float *x = c.act.x.data(), *delta = c.act.delta.data(), *normed = c.act.normed.data();
  const auto norm = [&](const Parameters& weight) {
    rms_norm(c.kernels,
             {x, d, delta, weight.data(), n, d, c.config.norm_eps, normed, d, c.numerics.native()});
  };
  norm(w.input_norm);
  c.observe("hidden", layer, x, n, d);
  mla_forward(c, w.attention, kind, layer);
  c.observe("attn_out", layer, delta, n, d);
  norm(w.post_attention_norm);
  if (kind.ffn == FfnKind::kDense) {
    mlp_forward(c, w.mlp, c.config.intermediate);
  } else {
    moe_forward(c, w.moe, layer);
  }
  c.observe("mlp_out", layer, delta, n, d);
  check_finite(c, delta, d, layer);
  run_checks(c);
}

}  // namespace tamis
