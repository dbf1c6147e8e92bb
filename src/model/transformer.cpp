#include "model/transformer.h"

#include <algorithm>

#include "base/error.h"
#include "model/layer_context.h"

namespace tamis {
namespace {

void embed(LayerContext& c, const ModelWeights& w, float* x) {
  const int64_t n = c.tokens(), d = c.config.hidden_size;
  embedding(c.kernels, {w.embed, w.first_vocab, c.batch.ids, n, x});
  // Every row lies on one rank; the others add zeros.
  c.group.all_reduce({x, static_cast<size_t>(n * d)});
}

void prepare(LayerContext& c, const std::vector<float>& inv_freq) {
  const int64_t n = c.tokens(), d = c.config.hidden_size;
  const auto half = static_cast<int64_t>(inv_freq.size());
  c.act.x.get(n * d);
  c.act.normed.get(n * d);
  std::fill_n(c.act.delta.get(n * d), n * d, 0.0F);
  const auto scaling = static_cast<float>(rope_attention_scaling(c.config.yarn_or_null()));
  rope_tables(c.kernels, inv_freq, scaling, c.batch.tokens.position, n, c.act.cos.get(n * half),
              c.act.sin.get(n * half));
  std::fill_n(c.batch.failed_layer, c.batch.sequences.size(), -1);
}

// Adds the last delta, norms, and leaves the final hidden states in act.normed.
void final_norm(LayerContext& c, const std::vector<float>& weight) {
  const int64_t n = c.tokens(), d = c.config.hidden_size;
  rms_norm(c.kernels, {c.act.x.data(), d, c.act.delta.data(), weight.data(), n, d,
                       c.config.norm_eps, c.act.normed.data(), d, c.numerics.native()});
}

// Logits of the wanted rows. float32 in every precision, as the official head.
void head(LayerContext& c, const ModelWeights& w) {
  const auto rows = static_cast<int64_t>(c.batch.logit_rows.size());
  const int64_t d = c.config.hidden_size, v = c.config.vocab_size;
  if (rows == 0) return;
  float* x = c.act.final_rows.get(rows * d);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(c.act.normed.data() + c.batch.logit_rows[static_cast<size_t>(r)] * d, d, x + r * d);
  }
  float* y = part_of(c, rows, v, c.batch.logits);
  linear(c.kernels, {x, d, rows, w.head, y, w.head.rows});
  gather_columns(c, y, rows, v, c.batch.logits);
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;  // 0 * x is 0 for every finite x, NaN for the rest
    for (int64_t i = 0; i < v; ++i) sum += 0.0F * c.batch.logits[r * v + i];
    const int32_t token = c.batch.logit_rows[static_cast<size_t>(r)];
    int32_t& failed = c.batch.failed_layer[c.batch.tokens.sequence[token]];
    if (sum != 0.0F && failed < 0) failed = static_cast<int32_t>(c.config.num_layers());
  }
}

void check_batch(const ModelConfig& config, const Batch& b) {
  for (int64_t t = 0; t < b.tokens.num_tokens; ++t) {
    if (b.ids[t] < 0 || b.ids[t] >= config.vocab_size) {
      throw InputError("token id " + std::to_string(b.ids[t]) + ": the vocabulary has " +
                       std::to_string(config.vocab_size));
    }
  }
}

void check_selector(const Group& group, const Selector& selector) {
  if (group.size() > 1 && selector.sees_own_heads_only()) {
    throw UsageError("this attention (oracle) ranks positions by all heads: one rank only, not " +
                     std::to_string(group.size()));
  }
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const ModelWeights& weights, Group& group,
                         const ModelOptions& options)
    : config_(config),
      weights_(weights),
      group_(group),
      options_(options),
      numerics_{options.precision, config.ue8m0_scales},
      inv_freq_(rope_inv_freq(config.rope, config.rope_theta, config.yarn_or_null())) {}

void Transformer::forward(KernelContext& context, const Batch& batch, const Selector& selector,
                          Activations& act, Observer* observer) const {
  check_batch(config_, batch);
  check_selector(group_, selector);
  LayerContext c{context, config_, options_, numerics_, group_, batch, selector, act, observer};
  prepare(c, inv_freq_);
  embed(c, weights_, act.x.data());
  for (int64_t l = 0; l < config_.num_layers(); ++l) {
    const auto i = static_cast<size_t>(l);
    block_forward(c, weights_.layers[i], config_.layers[i], l);
  }
  final_norm(c, weights_.norm);
  const int64_t n = c.tokens(), d = config_.hidden_size;
  c.observe("hidden", config_.num_layers(), act.x.data(), n, d);
  c.observe("hidden.norm", -1, act.normed.data(), n, d);
  check_finite(c, act.normed.data(), d, config_.num_layers());
  head(c, weights_);
}

void Transformer::forward_mtp(KernelContext& context, const Batch& batch, int64_t index,
                              const float* hidden, const Selector& selector, Activations& act,
                              Observer* observer) const {
  check_batch(config_, batch);
  check_selector(group_, selector);
  const MtpWeights& w = weights_.mtp.at(static_cast<size_t>(index));
  LayerContext c{context, config_, options_, numerics_, group_, batch, selector, act, observer};
  prepare(c, inv_freq_);
  const int64_t n = c.tokens(), d = config_.hidden_size;
  // z = W_eh [enorm(E[next]) ; hnorm(h)], embedding half first (docs/numerics.md 5).
  std::vector<float> e(static_cast<size_t>(n * d)), z(static_cast<size_t>(2 * n * d));
  std::vector<float> h(hidden, hidden + n * d);
  embed(c, weights_, e.data());
  const auto norm = [&](std::vector<float>& in, const std::vector<float>& weight, float* out) {
    rms_norm(c.kernels, {in.data(), d, nullptr, weight.data(), n, d, config_.norm_eps, out, 2 * d,
                         numerics_.native()});
  };
  norm(e, w.enorm, z.data());
  norm(h, w.hnorm, z.data() + d);
  const LinearArgs joined{z.data(), 2 * d, n, w.eh_proj, act.x.data(), d};
  numerics_.project(context, {&joined, 1});
  block_forward(c, w.layer, config_.mtp_layer, config_.num_layers() + index);
  final_norm(c, w.norm);
  c.observe("mtp.hidden", -1, act.normed.data(), n, d);
  check_finite(c, act.normed.data(), d, config_.num_layers() + index);
  head(c, weights_);
}

}  // namespace tamis
