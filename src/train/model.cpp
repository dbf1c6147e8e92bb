#include "train/model.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "base/error.h"
#include "kernels/ops.h"
#include "train/pass.h"

namespace tamis {
namespace {

// Tokens whose logits exist at the same time: on a CPU those that stay in its cache, on a device
// those of kHeadBytes.
constexpr int64_t kHeadBlock = 256, kHeadBytes = int64_t{256} << 20;

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

namespace {

// cos and sin of at least `count` positions, for the configuration of p.
template <typename T>
void make_rope_rows(Pass<T>& p, int64_t count) {
  const ModelConfig& m = p.config;
  RopeRows<T>& rows = p.state.rope;
  const std::vector<float> freq = rope_inv_freq(m.rope, m.rope_theta, m.yarn_or_null());
  const auto scaling = static_cast<float>(rope_attention_scaling(m.yarn_or_null()));
  if (rows.count >= count && rows.freq == freq && rows.scaling == scaling) return;
  std::vector<int32_t> positions(static_cast<size_t>(count));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i);
  std::vector<float> cos(positions.size() * freq.size()), sin(cos.size());
  rope_tables(p.kernels, freq, scaling, positions.data(), count, cos.data(), sin.data());
  placed(p, rows.cos, std::vector<T>(cos.begin(), cos.end()));
  placed(p, rows.sin, std::vector<T>(sin.begin(), sin.end()));
  rows.freq = freq;
  rows.scaling = scaling;
  rows.count = count;
}

}  // namespace

template <typename T>
void place_batch(Pass<T>& p) {
  TrainState<T>& s = p.state;
  std::vector<int32_t> positions;
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < p.batch.begins.size(); ++i) {
    const int64_t count = p.batch.begins[i + 1] - p.batch.begins[i];
    for (int64_t t = 0; t < count; ++t) positions.push_back(static_cast<int32_t>(t));
    longest = std::max(longest, count);
  }
  placed(p, s.ids, p.batch.ids);
  placed(p, s.targets, p.batch.targets);
  placed(p, s.position, positions);
  make_rope_rows(p, longest);
  const int64_t n = p.tokens(), half = p.config.rope / 2;
  const auto layers = static_cast<int64_t>(p.table.layers().size());
  pick_rows<T>(p.kernels,
               {s.rope.cos.data(), s.position.data(), n, half, sized(p, s.cos, n * half)});
  pick_rows<T>(p.kernels,
               {s.rope.sin.data(), s.position.data(), n, half, sized(p, s.sin, n * half)});
  sized(p, s.kl, layers * n);
  sized(p, s.balance, layers * p.batch.sequences());
  sized(p, s.expert_offsets, layers * (p.config.num_experts + 1));
}

namespace {

// Value i to sum i % 8, then those in order: the device waits, and one sum is slow.
double sum_of(const std::vector<double>& x) {
  constexpr size_t kSums = 8;
  double sums[kSums] = {};
  const size_t whole = x.size() / kSums * kSums;
  for (size_t i = 0; i < whole; i += kSums) {
    for (size_t j = 0; j < kSums; ++j) sums[j] += x[i + j];
  }
  for (size_t i = whole; i < x.size(); ++i) sums[i - whole] += x[i];
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

}  // namespace

template <typename T>
void collect_layers(Pass<T>& p, int64_t first, int64_t last) {
  const TrainState<T>& s = p.state;
  const int64_t n = p.tokens(), sequences = p.batch.sequences(), experts = p.config.num_experts;
  for (int64_t l = first; l < last; ++l) {
    const auto at = static_cast<size_t>(l);
    if (p.objective.train_indexer) {
      p.result.kl_rows[at] = fetched(p, s.kl.data() + l * n, n);
      p.result.kl[at] += sum_of(p.result.kl_rows[at]);
    }
    if (p.layer_config(l).ffn != FfnKind::kMoe) continue;
    const std::vector<int64_t> offsets =
        fetched(p, s.expert_offsets.data() + l * (experts + 1), experts + 1);
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      p.result.load[at][e] += offsets[e + 1] - offsets[e];
    }
    if (!p.objective.train_model) continue;
    for (const double b : fetched(p, s.balance.data() + l * sequences, sequences)) {
      p.result.balance[at] += b;
    }
  }
}

template <typename T>
double sum_of_losses(Pass<T>& p) {
  return sum_of(fetched(p, p.state.losses.data(), p.tokens()));
}

namespace {

template <typename T>
void forward(Pass<T>& p) {
  const ModelConfig& m = p.config;
  const int64_t values = p.tokens() * m.hidden_size, layers = m.num_layers();
  ForwardOps<T>::embedding(p.kernels, p.w + p.table.embed(), m, p.state.ids.data(), p.tokens(),
                           sized(p, p.layer(0).x, values));
  for (int64_t l = 0; l < layers; ++l) {
    attention_forward(p, l);
    Buffer<T>& next = l + 1 < layers ? p.layer(l + 1).x : p.state.work.final_x;
    ffn_forward(p, l, sized(p, next, values));
  }
}

template <typename T>
void final_norm(Pass<T>& p, int64_t norm) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  Workspace<T>& work = p.state.work;
  const bool rounded = rounds(p, n, {d});
  ForwardOps<T>::rms_norm(p.kernels, work.final_x.data(), d, p.w + norm, n, d,
                          static_cast<T>(p.config.norm_eps), sized(p, work.normed, n * d),
                          sized_if(rounded, p, work.normed_bf16, n * d));
}

// The losses; dx gets the gradient of the last layer's output.
template <typename T>
void head(Pass<T>& p, MtpState<T>* mtp, T* dx) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  Workspace<T>& work = p.state.work;
  T* dy = sized(p, work.dnormed, n * d);
  head_forward_backward(p, p.table.norm(), p.objective.lm_scale, dy);
  for (const int32_t target : p.batch.targets) p.result.targets += target >= 0 ? 1 : 0;
  if (mtp != nullptr) mtp_forward_backward(p, *mtp, dy);
  rms_norm_backward<T>(p.kernels, {work.final_x.data(), d, p.w + p.table.norm(), dy, n, d,
                                   static_cast<T>(p.config.norm_eps), dx, d,
                                   p.grad + p.table.norm(), false, sized_dx_bf16(p)});
}

template <typename T>
int64_t head_block(const Pass<T>& p) {
  if (p.kernels.device() == nullptr) return kHeadBlock;
  const int64_t fit = kHeadBytes / (p.config.vocab_size * static_cast<int64_t>(sizeof(T)));
  return std::max(kHeadBlock, fit / kHeadBlock * kHeadBlock);
}

// The losses alone, by blocks of tokens, and the most likely ones.
template <typename T>
void evaluate_head(Pass<T>& p) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, vocab = m.vocab_size, most = head_block(p);
  final_norm(p, p.table.norm());
  const T* y = work.normed.data();
  T* logits = sized(p, work.logits, std::min(most, n) * vocab);
  double* losses = sized(p, p.state.losses, n);
  int32_t* likeliest = sized(p, p.state.likeliest, n);
  for (int64_t begin = 0; begin < n; begin += most) {
    const int64_t count = std::min(most, n - begin);
    const Product<T> product{y + begin * d, d, count, p.w + p.table.head(), vocab, d, logits};
    ForwardOps<T>::products(p.kernels, {&product, 1});
    largest_columns<T>(p.kernels, {logits, count, vocab, likeliest + begin});
    cross_entropy_backward<T>(
        p.kernels, {logits, p.state.targets.data() + begin, count, vocab, 1, losses + begin});
  }
  p.result.lm_loss += sum_of_losses(p);
  const std::vector<int32_t> best = fetched(p, p.state.likeliest.data(), n);
  for (size_t i = 0; i < best.size(); ++i) {
    p.result.targets += p.batch.targets[i] >= 0 ? 1 : 0;
    p.result.right += best[i] == p.batch.targets[i] ? 1 : 0;
  }
}

template <typename T>
int64_t bytes_of(const Buffer<T>& b) {
  return b.bytes();
}

}  // namespace

template <typename T>
void head_forward_backward(Pass<T>& p, int64_t norm, double scale, T* d_normed) {
  const ModelConfig& m = p.config;
  Workspace<T>& work = p.state.work;
  const int64_t n = p.tokens(), d = m.hidden_size, vocab = m.vocab_size, most = head_block(p);
  final_norm(p, norm);
  const T* y = work.normed.data();
  T* logits = sized(p, work.logits, std::min(most, n) * vocab);
  double* losses = sized(p, p.state.losses, n);
  for (int64_t begin = 0; begin < n; begin += most) {
    const int64_t count = std::min(most, n - begin), at = begin * d;
    const bool rounded = rounds(p, count, {d, vocab});
    const uint16_t* y_bf16 = rounded ? work.normed_bf16.data() + at : nullptr;
    uint16_t* dlogits = sized_if(rounded, p, work.dlogits_bf16, count * vocab);
    Product<T> product{y + at, d, count, p.w + p.table.head(), vocab, d, logits, y_bf16};
    product.w_bf16 = rounded_weights(p, product.w);
    ForwardOps<T>::products(p.kernels, {&product, 1});
    cross_entropy_backward<T>(p.kernels, {logits, p.state.targets.data() + begin, count, vocab,
                                          scale, losses + begin, dlogits});
    products_backward<T>(
        p.kernels, {logits, vocab, y + at, d, count, p.w + p.table.head(), vocab, d, d_normed + at,
                    false, p.grad + p.table.head(), dlogits, y_bf16, nullptr, product.w_bf16});
  }
}

template void head_forward_backward(Pass<float>&, int64_t, double, float*);
template void head_forward_backward(Pass<double>&, int64_t, double, double*);
template void place_batch(Pass<float>&);
template void place_batch(Pass<double>&);

template <typename T>
TrainModel<T>::TrainModel(const ModelConfig& config, const ParameterTable& table)
    : config_(config), table_(table) {
  release();
}

template <typename T>
void TrainModel<T>::release() {
  state_ = std::make_unique<TrainState<T>>();
  state_->layers.resize(config_.layers.size());
  if (config_.num_mtp_layers == 0) return;
  mtp_ = std::make_unique<MtpState<T>>();
  mtp_->state.layers.resize(config_.layers.size() + 1);
}

template <typename T>
TrainModel<T>::TrainModel(const ModelConfig& config, const ParameterTable& table, Group* experts,
                          Group* tensor)
    : TrainModel(config, table) {
  experts_ = experts;
  tensor_ = tensor;
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
            batch,   objective, *state_, result,         {experts_, tensor_}};
  if constexpr (std::is_same_v<T, float>) {
    if (rounds(p, batch.tokens(), {config_.hidden_size}) && !objective.fp8) {
      uint16_t* rounded = sized(p, state_->w_bf16, table_.size());
      round_values(context, values.weights, table_.size(), rounded);
      p.w_bf16 = rounded;
    }
  }
  for (LayerState<T>& layer : state_->layers) {
    layer.indices.clear();
    layer.selected.clear();
  }
  place_batch(p);
  forward(p);
  if (objective.evaluate) evaluate_head(p);
  MtpState<T>* mtp = nullptr;
  if (objective.train_model && objective.mtp_scale > 0) mtp = mtp_.get();
  if (!objective.train_model && objective.train_indexer) mtp = mtp_.get();
  if (objective.train_model) {
    T* dx = zeroed(p, state_->work.dx, batch.tokens() * config_.hidden_size);
    head(p, mtp, dx);
    for (int64_t l = config_.num_layers() - 1; l >= 0; --l) {
      ffn_backward(p, l, dx);
      attention_backward(p, l, dx);
    }
    embedding_backward<T>(context, {state_->ids.data(), dx, batch.tokens(), config_.hidden_size,
                                    values.gradients + table_.embed(), config_.vocab_size});
    result.lm_loss += sum_of_losses(p);
  } else if (mtp != nullptr) {
    final_norm(p, table_.norm());
    mtp_forward_backward<T>(p, *mtp, nullptr);
  }
  collect_layers(p, 0, config_.num_layers());
  if (mtp != nullptr && mtp->batch.tokens() > 0) {
    Pass<T> q = mtp_pass(p, *mtp);
    collect_layers(q, config_.num_layers(), config_.num_layers() + 1);
    if (objective.train_model) result.mtp_loss += sum_of_losses(q);
  }
  return result;
}

template <typename T>
int64_t TrainModel<T>::activation_bytes() const {
  int64_t total = 0;
  const auto add = [&](auto&... buffers) { total += (bytes_of(buffers) + ...); };
  const auto add_expanded = [&](const ExpandedState<T>& e) {
    add(e.q_lora, e.q, e.c_kv, e.k_pe, e.kv, e.q_lora_bf16, e.c_kv_bf16, e.q_bf16, e.kv_bf16);
  };
  const auto add_layer = [&](const LayerState<T>& a) {
    add_expanded(a);
    add(a.x, a.q_a, a.kv_a, a.o_latent, a.indices, a.selected, a.o, a.log_sum, a.x_mid, a.gate,
        a.up, a.router, a.expert_weights, a.expert_rows, a.expert_gate, a.expert_up, a.expert_down,
        a.expert_ids, a.expert_row_of, a.expert_rows_bf16, a.o_bf16, a.k_pe_bf16, a.normed_bf16,
        a.act_bf16, a.expert_act_bf16);
  };
  for (const LayerState<T>& a : state_->layers) add_layer(a);
  add_expanded(state_->expanded);
  if (mtp_) {
    for (const LayerState<T>& a : mtp_->state.layers) add_layer(a);
    add_expanded(mtp_->state.expanded);
  }
  return total;
}

template <typename T>
int64_t TrainModel<T>::work_bytes() const {
  int64_t total = 0;
  const auto add = [&](auto&... buffers) { total += (bytes_of(buffers) + ...); };
  const auto add_work = [&](const Workspace<T>& w) {
    add(w.normed, w.dnormed, w.dx, w.indices, w.d_o, w.dq, w.dkv, w.dc_kv, w.dk_pe, w.dkv_a, w.dq_a,
        w.dq_lora, w.q_latent, w.o_latent, w.dq_latent, w.do_latent, w.all_q, w.all_kv, w.index_q,
        w.index_k_raw, w.index_k, w.index_w, w.d_index_q, w.d_index_k, w.d_index_w, w.target, w.act,
        w.dact, w.dgate, w.dup, w.drouter, w.dexpert_weights, w.drows, w.ddown, w.exchanged,
        w.final_x, w.logits);
    add(w.normed_bf16, w.act_bf16, w.dgate_up_bf16, w.ddown_bf16, w.dlogits_bf16, w.d_o_bf16,
        w.dq_bf16, w.dkv_bf16, w.dq_a_bf16, w.dkv_a_bf16, w.dx_bf16);
    for (const Fp8Factor<T>* f : {&w.fp8_first, &w.fp8_second, &w.fp8_down})
      add(f->values, f->bf16);
  };
  add_work(state_->work);
  if (mtp_) {
    add_work(mtp_->state.work);
    add(mtp_->e, mtp_->h, mtp_->joined, mtp_->djoined, mtp_->half, mtp_->back);
  }
  return total;
}

template class TrainModel<float>;
template class TrainModel<double>;

}  // namespace tamis
