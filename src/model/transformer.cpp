#include "model/transformer.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/error.h"
#include "model/layer_context.h"

namespace tamis {
namespace {

void embed(LayerContext& c, const ModelWeights& w, float* x) {
  const int64_t n = c.tokens(), d = c.config.hidden_size;
  const EmbeddingArgs rows{w.embed, w.first_vocab, c.staged.ids, n, x};
  if (c.one_rank()) return later(c, rows);
  embedding(c.kernels, rows);
  // Every row lies on one rank; the others add zeros.
  c.group.all_reduce({x, static_cast<size_t>(n * d)});
}

// On a device, cos and sin of every position that may come. Computed on the host: those of the C
// library are the reference's.
void grow_rope_tables(LayerContext& c, const std::vector<float>& inv_freq, float scaling) {
  const int64_t count = c.staged.tokens.max_context, half = static_cast<int64_t>(inv_freq.size());
  if (count <= c.act.rope_positions) return;
  std::vector<int32_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<float> cos(static_cast<size_t>(count * half)), sin(cos.size());
  rope_tables(c.kernels, inv_freq, scaling, positions.data(), count, cos.data(), sin.data());
  const auto bytes = static_cast<int64_t>(cos.size() * sizeof(float));
  put(c.kernels, c.act.rope_cos.get(count * half), cos.data(), bytes);
  put(c.kernels, c.act.rope_sin.get(count * half), sin.data(), bytes);
  c.act.rope_positions = count;
}

void prepare(LayerContext& c, const std::vector<float>& inv_freq) {
  c.act.waiting.clear();  // of a pass that threw
  c.act.unchecked.reset();
  const int64_t n = c.tokens(), d = c.config.hidden_size;
  const auto half = static_cast<int64_t>(inv_freq.size());
  c.act.x.get(n * d);
  c.act.normed.get(n * d);
  float* delta = c.act.delta.get(n * d);
  c.act.delta_is_zero = !c.numerics.native();
  if (c.numerics.native()) zero(c.kernels, delta, n * d * static_cast<int64_t>(sizeof(float)));
  const auto scaling = static_cast<float>(rope_attention_scaling(c.config.yarn_or_null()));
  float *cos = c.act.cos.get(n * half), *sin = c.act.sin.get(n * half);
  if (c.act.place.device == nullptr) {
    return rope_tables(c.kernels, inv_freq, scaling, c.batch.tokens.position, n, cos, sin);
  }
  grow_rope_tables(c, inv_freq, scaling);
  const int32_t* position = c.staged.tokens.position;
  later(c, GatherRowsArgs{c.act.rope_cos.data(), position, n, half, cos}, 1);
  later(c, GatherRowsArgs{c.act.rope_sin.data(), position, n, half, sin}, 2);
}

// Logits of every row are wanted, in order, as in decoding.
bool wants_every_row(const LayerContext& c) {
  const std::span<const int32_t> rows = c.batch.logit_rows;
  if (static_cast<int64_t>(rows.size()) != c.tokens()) return false;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r] != static_cast<int32_t>(r)) return false;
  }
  return true;
}

// The final norm and the head may be one launch: nobody wants the hidden states by themselves. What
// is not finite there shows in the logits.
bool joins_head(const LayerContext& c) {
  return joins_norms(c) && c.act.place.device != nullptr && c.batch.hidden == nullptr &&
         c.tokens() > 0 && wants_every_row(c);
}

// Adds the last delta, norms, and leaves the final hidden states in act.normed. The norm of
// joins_head() is made with the head.
void final_norm(LayerContext& c, const Parameters& weight, int64_t layer) {
  add_and_norm(c, weight);
  if (joins_head(c)) return;
  check_finite(c, c.act.normed.data(), c.config.hidden_size, layer);
  run_waiting(c);
}

// Logits of the wanted rows. float32 in every precision, as the official head; but a head in int8
// is multiplied in int8 precision as every such weight is.
void head(LayerContext& c, const ModelWeights& w) {
  const auto rows = static_cast<int64_t>(c.batch.logit_rows.size());
  const int64_t d = c.config.hidden_size, v = c.config.vocab_size;
  if (rows == 0) return;
  const float* x = c.act.normed.data();
  if (!wants_every_row(c)) {
    float* some = c.act.final_rows.get(rows * d);
    gather_rows(c.kernels, {x, c.staged.logit_rows, rows, d, some});
    x = some;
  }
  float* y = part_of(c, rows, v, c.staged.logits);
  const LinearArgs product{x, d, rows, w.head, y, w.head.rows};
  if (joins_head(c)) {
    token_products(c.kernels, rows, {c.act.waiting, {&product, 1}});
    return c.act.waiting.clear();
  }
  c.numerics.int8() ? c.numerics.project(c.kernels, {&product, 1}) : linear(c.kernels, product);
  gather_columns(c, y, rows, v, c.staged.logits);
}

// The final hidden states, for who wants them on the host.
void give_hidden(const LayerContext& c) {
  if (c.batch.hidden == nullptr) return;
  const int64_t bytes = c.tokens() * c.config.hidden_size * static_cast<int64_t>(sizeof(float));
  get(c.kernels, c.batch.hidden, c.act.normed.data(), bytes);
}

// True for a step of decoding on a device whose operations depend on its key alone.
bool recordable(const LayerContext& c) {
  const auto& sequences = c.batch.sequences;
  return c.act.place.device != nullptr && c.observer == nullptr && c.selector.same_every_step() &&
         c.tokens() == static_cast<int64_t>(sequences.size()) &&
         std::none_of(sequences.begin(), sequences.end(),
                      [](const BatchSequence& s) { return s.expanded; });
}

StepGraphs::Key step_key(const LayerContext& c, const ModelWeights* weights) {
  const auto address = [](const void* p) {
    return static_cast<int64_t>(std::bit_cast<intptr_t>(p));
  };
  return {address(weights),
          address(c.batch.kv.front().base),
          c.batch.kv.front().page_stride,
          c.tokens(),
          static_cast<int64_t>(c.batch.logit_rows.size()),
          wants_every_row(c) ? 1 : 0,
          c.staged.tokens.max_context,
          c.selector.topk(),
          c.selector.uses_indexer() ? 1 : 0,
          c.selector.selects_all() ? 1 : 0,
          c.batch.draws.empty() ? 0 : 1,
          indexer_needed(c) ? 1 : 0};
}

void check_batch(const ModelConfig& config, const Batch& b) {
  for (int64_t t = 0; t < b.tokens.num_tokens; ++t) {
    if (b.ids[t] < 0 || b.ids[t] >= config.vocab_size) {
      throw InputError("token id " + std::to_string(b.ids[t]) + ": the vocabulary has " +
                       std::to_string(config.vocab_size));
    }
  }
}

void check_group(const KernelContext& context, const Group& group) {
  if (context.device() != nullptr && group.size() > 1) {
    throw UsageError("--backend cuda runs on one rank, not " + std::to_string(group.size()));
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

const ModelWeights& Transformer::place(KernelContext& context,
                                       FunctionRef<void(int64_t, int64_t)> progress) const {
  if (context.device() == nullptr) return weights_;
  auto& placed = placed_[context.device()->info().ordinal];
  if (!placed) placed = std::make_unique<DeviceWeights>(context, weights_, progress);
  return placed->weights();
}

const ModelWeights& Transformer::weights_on(KernelContext& context) const {
  return place(context, [](int64_t, int64_t) {});
}

void Transformer::forward(KernelContext& context, const Batch& batch, const Selector& selector,
                          Activations& act, Observer* observer) const {
  check_batch(config_, batch);
  check_selector(group_, selector);
  check_group(context, group_);
  act.place.device = context.device();
  const ModelWeights& weights = weights_on(context);
  StagedBatch staged(context, batch, config_.vocab_size, act);
  LayerContext c{context, config_, options_, numerics_, group_,
                 batch,   staged,  selector, act,       observer};
  if (recordable(c)) {
    act.graphs.run(act.place, step_key(c, &weights), [&] { walk(c, weights); });
  } else {
    walk(c, weights);
  }
  staged.finish();
  give_hidden(c);
}

void Transformer::walk(LayerContext& c, const ModelWeights& weights) const {
  c.staged.start();
  prepare(c, inv_freq_);
  embed(c, weights, c.act.x.data());
  for (int64_t l = 0; l < config_.num_layers(); ++l) {
    const auto i = static_cast<size_t>(l);
    block_forward(c, weights.layers[i], config_.layers[i], l);
  }
  final_norm(c, weights.norm, config_.num_layers());
  const int64_t n = c.tokens(), d = config_.hidden_size;
  c.observe("hidden", config_.num_layers(), c.act.x.data(), n, d);
  c.observe("hidden.norm", -1, c.act.normed.data(), n, d);
  head(c, weights);
  c.staged.check_logits(static_cast<int32_t>(config_.num_layers()));
}

void Transformer::forward_mtp(KernelContext& context, const Batch& batch, int64_t index,
                              const float* hidden, const Selector& selector, Activations& act,
                              Observer* observer) const {
  check_batch(config_, batch);
  check_selector(group_, selector);
  check_group(context, group_);
  act.place.device = context.device();
  const ModelWeights& weights = weights_on(context);
  StagedBatch staged(context, batch, config_.vocab_size, act);
  const MtpWeights& w = weights.mtp.at(static_cast<size_t>(index));
  LayerContext c{context, config_, options_, numerics_, group_,
                 batch,   staged,  selector, act,       observer};
  staged.start();
  prepare(c, inv_freq_);
  const int64_t n = c.tokens(), d = config_.hidden_size;
  // z = W_eh [enorm(E[next]) ; hnorm(h)], embedding half first (docs/numerics.md 5).
  float *e = act.mtp_embedding.get(n * d), *z = act.mtp_joined.get(2 * n * d);
  float* h = act.mtp_hidden.get(n * d);
  put(context, h, hidden, n * d * static_cast<int64_t>(sizeof(float)));
  embed(c, weights, e);
  const auto norm = [&](float* in, const Parameters& weight, float* out) {
    later(c, RmsNormArgs{in, d, nullptr, weight.data(), n, d, config_.norm_eps, out, 2 * d,
                         numerics_.native()});
  };
  norm(e, w.enorm, z);
  norm(h, w.hnorm, z + d);
  run_waiting(c);
  const LinearArgs joined{z, 2 * d, n, w.eh_proj, act.x.data(), d};
  numerics_.project(context, {&joined, 1});
  block_forward(c, w.layer, config_.mtp_layer, config_.num_layers() + index);
  final_norm(c, w.norm, config_.num_layers() + index);
  c.observe("mtp.hidden", -1, act.normed.data(), n, d);
  head(c, weights);
  staged.check_logits(static_cast<int32_t>(config_.num_layers()));
  staged.finish();
  give_hidden(c);
}

}  // namespace tamis
