#include "train/model.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/ops.h"
#include "train/pass.h"

namespace tamis {
namespace {

constexpr int64_t kHeadBlock = 256;  // tokens whose logits exist at the same time

void check(const ModelConfig& config, const MicroBatch& batch, const Objective& objective) {
  for (const int32_t id : batch.ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InputError("train: token " + std::to_string(id) + " is outside the vocabulary of " +
                       std::to_string(config.vocab_size));
    }
  }
  const bool needs_indexer = objective.train_indexer || objective.measure_topk > 0 ||
                             objective.attention == TrainAttention::kSparse;
  if (needs_indexer && !config.has_indexer()) {
    throw UsageError("train: the model has no indexer");
  }
  if (objective.attention == TrainAttention::kSparse && objective.topk < 1) {
    throw UsageError("train: sparse attention needs a top-k of at least 1");
  }
  if (objective.evaluate && (objective.train_model || objective.train_indexer)) {
    throw UsageError("train: an evaluation does not train");
  }
}

}  // namespace

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

namespace {

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

template <typename T>
void final_norm(Pass<T>& p, int64_t norm) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  Workspace<T>& work = p.state.work;
  ForwardOps<T>::rms_norm(p.kernels, work.final_x.data(), d, p.w + norm, n, d,
                          static_cast<T>(p.config.norm_eps), sized(work.final_normed, n * d));
}

// The losses; dx gets the gradient of the last layer's output.
template <typename T>
void head(Pass<T>& p, MtpState<T>* mtp, T* dx) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  Workspace<T>& work = p.state.work;
  T* dy = sized(work.dnormed, n * d);
  p.result.lm_loss += head_forward_backward(p, p.table.norm(), p.objective.lm_scale, dy);
  for (const int32_t target : p.batch.targets) p.result.targets += target >= 0 ? 1 : 0;
  if (mtp != nullptr) mtp_forward_backward(p, *mtp, dy);
  rms_norm_backward<T>(p.kernels,
                       {work.final_x.data(), d, p.w + p.table.norm(), dy, n, d,
                        static_cast<T>(p.config.norm_eps), dx, d, p.grad + p.table.norm()});
}

// The losses alone, by blocks of tokens.
template <typename T>
void evaluate_head(Pass<T>& p) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, vocab = m.vocab_size;
  final_norm(p, p.table.norm());
  const T* y = work.final_normed.data();
  T* logits = sized(work.logits, std::min(kHeadBlock, n) * vocab);
  sized(work.rows, n);
  for (int64_t begin = 0; begin < n; begin += kHeadBlock) {
    const int64_t count = std::min(kHeadBlock, n - begin);
    const int32_t* targets = p.batch.targets.data() + begin;
    const Product<T> product{y + begin * d, d, count, p.w + p.table.head(), vocab, d, logits};
    ForwardOps<T>::products(p.kernels, {&product, 1});
    for (int64_t i = 0; i < count; ++i) {
      const T* row = logits + i * vocab;
      if (targets[i] >= 0 && std::max_element(row, row + vocab) - row == targets[i]) {
        ++p.result.right;
      }
    }
    cross_entropy_backward<T>(p.kernels,
                              {logits, targets, count, vocab, 1, work.rows.data() + begin});
  }
  for (const double loss : work.rows) p.result.lm_loss += loss;
  for (const int32_t target : p.batch.targets) p.result.targets += target >= 0 ? 1 : 0;
}

template <typename T>
int64_t bytes_of(const std::vector<T>& v) {
  return static_cast<int64_t>(v.capacity() * sizeof(T));
}

}  // namespace

template <typename T>
double head_forward_backward(Pass<T>& p, int64_t norm, double scale, T* d_normed) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, vocab = m.vocab_size;
  final_norm(p, norm);
  const T* y = work.final_normed.data();
  T* logits = sized(work.logits, std::min(kHeadBlock, n) * vocab);
  sized(work.rows, n);
  for (int64_t begin = 0; begin < n; begin += kHeadBlock) {
    const int64_t count = std::min(kHeadBlock, n - begin), at = begin * d;
    const Product<T> product{y + at, d, count, p.w + p.table.head(), vocab, d, logits};
    ForwardOps<T>::products(p.kernels, {&product, 1});
    cross_entropy_backward<T>(p.kernels, {logits, p.batch.targets.data() + begin, count, vocab,
                                          scale, work.rows.data() + begin});
    products_backward<T>(p.kernels, {logits, vocab, y + at, d, count, p.w + p.table.head(), vocab,
                                     d, d_normed + at, false, p.grad + p.table.head()});
  }
  double sum = 0;
  for (const double loss : work.rows) sum += loss;
  return sum;
}

template double head_forward_backward(Pass<float>&, int64_t, double, float*);
template double head_forward_backward(Pass<double>&, int64_t, double, double*);
template void position_tables(Pass<float>&);
template void position_tables(Pass<double>&);

template <typename T>
TrainModel<T>::TrainModel(const ModelConfig& config, const ParameterTable& table)
    : config_(config), table_(table), state_(std::make_unique<TrainState<T>>()) {
  state_->layers.resize(config.layers.size());
  if (config.num_mtp_layers == 0) return;
  mtp_ = std::make_unique<MtpState<T>>();
  mtp_->state.layers.resize(config.layers.size() + 1);
}

template <typename T>
TrainModel<T>::~TrainModel() = default;

template <typename T>
StepResult TrainModel<T>::run(KernelContext& context, const Values& values, const MicroBatch& batch,
                              const Objective& objective) {
  check(config_, batch, objective);
  StepResult result;
  const size_t layers = table_.layers().size();
  if (objective.train_indexer) {
    result.kl.resize(layers);
    result.kl_rows.resize(layers);
  }
  if (objective.measure_topk > 0) result.health.resize(config_.layers.size());
  result.balance.resize(layers);
  result.load.assign(layers, std::vector<int64_t>(static_cast<size_t>(config_.num_experts)));
  Pass<T> p{context, config_,   table_,  values.weights, values.gradients,
            batch,   objective, *state_, result};
  for (LayerState<T>& layer : state_->layers) layer.indices.clear();
  position_tables(p);
  forward(p);
  if (objective.evaluate) evaluate_head(p);
  if (!objective.train_model) {
    if (mtp_ && objective.train_indexer) {
      final_norm(p, table_.norm());
      mtp_forward_backward<T>(p, *mtp_, nullptr);
    }
    return result;
  }
  T* dx = zeroed(state_->work.dx, batch.tokens() * config_.hidden_size);
  head(p, objective.mtp_scale > 0 ? mtp_.get() : nullptr, dx);
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
  const auto add = [&](auto&... buffers) { total += (bytes_of(buffers) + ...); };
  const auto add_expanded = [&](const ExpandedState<T>& e) {
    add(e.q_lora, e.q, e.c_kv, e.k_pe, e.kv, e.q_latent);
  };
  const auto add_layer = [&](const LayerState<T>& a) {
    add_expanded(a);
    add(a.x, a.q_a, a.kv_a, a.o_latent, a.indices, a.o, a.x_mid, a.gate, a.up, a.router,
        a.expert_weights, a.expert_rows, a.expert_gate, a.expert_up, a.expert_down, a.expert_ids,
        a.expert_row_of);
  };
  for (const LayerState<T>& a : state_->layers) add_layer(a);
  add_expanded(state_->expanded);
  if (mtp_) {
    for (const LayerState<T>& a : mtp_->state.layers) add_layer(a);
    add_expanded(mtp_->state.expanded);
  }
  return total;
}

template class TrainModel<float>;
template class TrainModel<double>;

}  // namespace tamis
