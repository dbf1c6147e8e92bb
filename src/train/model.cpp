#include "train/model.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/ops.h"
#include "train/pass.h"

namespace tamis {
namespace {

void check(const ModelConfig& config, const MicroBatch& batch, const Objective& objective) {
  for (const int32_t id : batch.ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InputError("train: token " + std::to_string(id) + " is outside the vocabulary of " +
                       std::to_string(config.vocab_size));
    }
  }
  const bool needs_indexer =
      objective.train_indexer || objective.attention == TrainAttention::kSparse;
  if (needs_indexer && !config.has_indexer()) {
    throw UsageError("train: the model has no indexer");
  }
  if (objective.attention == TrainAttention::kSparse && objective.topk < 1) {
    throw UsageError("train: sparse attention needs a top-k of at least 1");
  }
}

// Every sequence counts its positions from 0.
template <typename T>
void position_tables(Pass<T>& p) {
  const ModelConfig& m = p.config;
  std::vector<int32_t> positions;
  for (size_t i = 0; i + 1 < p.batch.begins.size(); ++i) {
    for (int64_t t = p.batch.begins[i]; t < p.batch.begins[i + 1]; ++t) {
      positions.push_back(static_cast<int32_t>(t - p.batch.begins[i]));
    }
  }
  const std::vector<float> freq = rope_inv_freq(m.rope, m.rope_theta, m.yarn_or_null());
  const auto scaling = static_cast<float>(rope_attention_scaling(m.yarn_or_null()));
  std::vector<float> cos(positions.size() * freq.size()), sin(cos.size());
  rope_tables(p.kernels, freq, scaling, positions.data(), p.tokens(), cos.data(), sin.data());
  p.state.cos.assign(cos.begin(), cos.end());
  p.state.sin.assign(sin.begin(), sin.end());
}

template <typename T>
void forward(Pass<T>& p) {
  const ModelConfig& m = p.config;
  const int64_t values = p.tokens() * m.hidden_size, layers = m.num_layers();
  ForwardOps<T>::embedding(p.kernels, p.w + p.table.embed(), m, p.batch.ids,
                           sized(p.layer(0).x, values));
  for (int64_t l = 0; l < layers; ++l) {
    attention_forward(p, l);
    std::vector<T>& next = l + 1 < layers ? p.layer(l + 1).x : p.state.work.final_x;
    ffn_forward(p, l, sized(next, values));
  }
}

// The head and the loss, by blocks of tokens; dx gets the gradient of the last layer's output.
template <typename T>
void head(Pass<T>& p, T* dx) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, vocab = m.vocab_size;
  const auto eps = static_cast<T>(m.norm_eps);
  T* y = sized(work.final_normed, n * d);
  ForwardOps<T>::rms_norm(p.kernels, work.final_x.data(), d, p.w + p.table.norm(), n, d, eps, y);
  T* dy = sized(work.dnormed, n * d);
  constexpr int64_t kBlock = 256;
  T* logits = sized(work.logits, std::min(kBlock, n) * vocab);
  sized(work.rows, n);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin), at = begin * d;
    const Product<T> product{y + at, d, count, p.w + p.table.head(), vocab, d, logits};
    ForwardOps<T>::products(p.kernels, {&product, 1});
    cross_entropy_backward<T>(p.kernels, {logits, p.batch.targets.data() + begin, count, vocab,
                                          p.objective.lm_scale, work.rows.data() + begin});
    products_backward<T>(p.kernels, {logits, vocab, y + at, d, count, p.w + p.table.head(), vocab,
                                     d, dy + at, false, p.grad + p.table.head()});
  }
  for (const double loss : work.rows) p.result.lm_loss += loss;
  for (const int32_t target : p.batch.targets) p.result.targets += target >= 0 ? 1 : 0;
  rms_norm_backward<T>(p.kernels, {work.final_x.data(), d, p.w + p.table.norm(), dy, n, d, eps, dx,
                                   d, p.grad + p.table.norm()});
}

template <typename T>
int64_t bytes_of(const std::vector<T>& v) {
  return static_cast<int64_t>(v.capacity() * sizeof(T));
}

}  // namespace

template <typename T>
TrainModel<T>::TrainModel(const ModelConfig& config, const ParameterTable& table)
    : config_(config), table_(table), state_(std::make_unique<TrainState<T>>()) {
  state_->layers.resize(config.layers.size());
}

template <typename T>
TrainModel<T>::~TrainModel() = default;

template <typename T>
StepResult TrainModel<T>::run(KernelContext& context, const Values& values, const MicroBatch& batch,
                              const Objective& objective) {
  check(config_, batch, objective);
  StepResult result;
  const size_t layers = config_.layers.size();
  if (objective.train_indexer) {
    result.kl.resize(layers);
    result.kl_rows.resize(layers);
  }
  result.balance.resize(layers);
  result.load.assign(layers, std::vector<int64_t>(static_cast<size_t>(config_.num_experts)));
  Pass<T> p{context, config_,   table_,  values.weights, values.gradients,
            batch,   objective, *state_, result};
  for (LayerState<T>& layer : state_->layers) layer.indices.clear();
  position_tables(p);
  forward(p);
  if (!objective.train_model) return result;
  T* dx = zeroed(state_->work.dx, batch.tokens() * config_.hidden_size);
  head(p, dx);
  for (int64_t l = config_.num_layers() - 1; l >= 0; --l) {
    ffn_backward(p, l, dx);
    attention_backward(p, l, dx);
  }
  embedding_backward<T>(context, {batch.ids.data(), dx, batch.tokens(), config_.hidden_size,
                                  values.gradients + table_.embed()});
  return result;
}

template <typename T>
int64_t TrainModel<T>::activation_bytes() const {
  int64_t total = 0;
  for (const LayerState<T>& a : state_->layers) {
    for (const std::vector<T>* v : {&a.x,           &a.q_a,         &a.q_lora,    &a.q,
                                    &a.kv_a,        &a.c_kv,        &a.k_pe,      &a.kv,
                                    &a.q_latent,    &a.o_latent,    &a.o,         &a.x_mid,
                                    &a.gate,        &a.up,          &a.router,    &a.expert_weights,
                                    &a.expert_rows, &a.expert_gate, &a.expert_up, &a.expert_down}) {
      total += bytes_of(*v);
    }
    total += bytes_of(a.indices) + bytes_of(a.expert_ids) + bytes_of(a.expert_row_of);
  }
  return total;
}

template class TrainModel<float>;
template class TrainModel<double>;

}  // namespace tamis
