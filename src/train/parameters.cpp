#include "train/parameters.h"

#include "base/error.h"

namespace tamis {

// Walks the model once for each group, so that a group's tensors lie side by side.
class ParameterTable::Builder {
 public:
  Builder(const ModelConfig& config, const ExpertShare& share, ParameterTable& table)
      : c_(config), share_(share), t_(table) {}

  void build() {
    t_.layers_.resize(c_.layers.size() + static_cast<size_t>(c_.num_mtp_layers));
    for (const ParameterGroup group :
         {ParameterGroup::kModel, ParameterGroup::kIndexer, ParameterGroup::kBias}) {
      wanted_ = group;
      Range& range = t_.ranges_[static_cast<size_t>(group)];
      range.begin = next_;
      walk();
      if (group == ParameterGroup::kModel && share_.count > 0) walk_share();
      range.end = next_;
    }
  }

 private:
  void walk_share() {
    t_.experts_.begin = next_;
    for (size_t l = 0; l < t_.layers_.size(); ++l) {
      const LayerConfig& layer = l < c_.layers.size() ? c_.layers[l] : c_.mtp_layer;
      if (layer.ffn != FfnKind::kMoe) continue;
      experts(t_.layers_[l], "model.layers." + std::to_string(l) + ".mlp.", share_);
    }
    t_.experts_.end = next_;
  }

  void walk() {
    using G = ParameterGroup;
    const int64_t d = c_.hidden_size;
    add(t_.embed_, "model.embed_tokens.weight", {c_.vocab_size, d}, G::kModel);
    for (size_t l = 0; l < c_.layers.size(); ++l) layer(l, c_.layers[l]);
    if (c_.num_mtp_layers > 0) mtp();
    add(t_.norm_, "model.norm.weight", {d}, G::kModel, ParameterStart::kOne);
    if (c_.tie_word_embeddings) {
      t_.head_ = t_.embed_;
    } else {
      add(t_.head_, "lm_head.weight", {c_.vocab_size, d}, G::kModel);
    }
  }

  void mtp() {
    using G = ParameterGroup;
    constexpr auto kOne = ParameterStart::kOne;
    const size_t l = c_.layers.size();
    const std::string p = "model.layers." + std::to_string(l) + ".";
    const int64_t d = c_.hidden_size;
    add(t_.mtp_.enorm, p + "enorm.weight", {d}, G::kModel, kOne);
    add(t_.mtp_.hnorm, p + "hnorm.weight", {d}, G::kModel, kOne);
    add(t_.mtp_.eh_proj, p + "eh_proj.weight", {d, 2 * d}, G::kModel);
    layer(l, c_.mtp_layer);
    add(t_.mtp_.norm, p + "shared_head.norm.weight", {d}, G::kModel, kOne);
  }

  void layer(size_t l, const LayerConfig& config) {
    using G = ParameterGroup;
    constexpr auto kOne = ParameterStart::kOne;
    const std::string p = "model.layers." + std::to_string(l) + ".";
    const std::string a = p + "self_attn.";
    const int64_t d = c_.hidden_size;
    LayerSlots& s = t_.layers_[l];
    add(s.input_norm, p + "input_layernorm.weight", {d}, G::kModel, kOne);
    add(s.q_a, a + "q_a_proj.weight", {c_.q_lora, d}, G::kModel);
    add(s.q_a_norm, a + "q_a_layernorm.weight", {c_.q_lora}, G::kModel, kOne);
    add(s.q_b, a + "q_b_proj.weight", {c_.num_heads * c_.qk_head(), c_.q_lora}, G::kModel);
    add(s.kv_a, a + "kv_a_proj_with_mqa.weight", {c_.kv_lora + c_.rope, d}, G::kModel);
    add(s.kv_a_norm, a + "kv_a_layernorm.weight", {c_.kv_lora}, G::kModel, kOne);
    add(s.kv_b, a + "kv_b_proj.weight", {c_.num_heads * (c_.nope + c_.v_head), c_.kv_lora},
        G::kModel);
    add(s.o, a + "o_proj.weight", {d, c_.num_heads * c_.v_head}, G::kModel);
    if (config.indexer == IndexerKind::kOwn) indexer(s.indexer, a + "indexer.");
    add(s.post_attention_norm, p + "post_attention_layernorm.weight", {d}, G::kModel, kOne);
    if (config.ffn == FfnKind::kDense) {
      mlp(s.mlp, p + "mlp.", c_.intermediate);
    } else {
      moe(s, p + "mlp.");
    }
  }

  void indexer(IndexerSlots& s, const std::string& p) {
    constexpr auto kIndexer = ParameterGroup::kIndexer;
    add(s.wq_b, p + "wq_b.weight", {c_.index_heads * c_.index_dim, c_.q_lora}, kIndexer);
    add(s.wk, p + "wk.weight", {c_.index_dim, c_.hidden_size}, kIndexer);
    add(s.k_norm_w, p + "k_norm.weight", {c_.index_dim}, kIndexer, ParameterStart::kOne);
    add(s.k_norm_b, p + "k_norm.bias", {c_.index_dim}, kIndexer, ParameterStart::kZero);
    add(s.weights_proj, p + "weights_proj.weight", {c_.index_heads, c_.hidden_size}, kIndexer);
  }

  void mlp(MlpSlots& s, const std::string& p, int64_t width) {
    add(s.gate, p + "gate_proj.weight", {width, c_.hidden_size}, ParameterGroup::kModel);
    add(s.up, p + "up_proj.weight", {width, c_.hidden_size}, ParameterGroup::kModel);
    add(s.down, p + "down_proj.weight", {c_.hidden_size, width}, ParameterGroup::kModel);
  }

  void moe(LayerSlots& s, const std::string& p) {
    add(s.router, p + "gate.weight", {c_.num_experts, c_.hidden_size}, ParameterGroup::kModel);
    add(s.router_bias, p + "gate.e_score_correction_bias", {c_.num_experts}, ParameterGroup::kBias,
        ParameterStart::kZero);
    if (share_.count == 0) experts(s, p, {0, c_.num_experts});
    if (c_.num_shared_experts > 0) {
      mlp(s.mlp, p + "shared_experts.", c_.moe_intermediate * c_.num_shared_experts);
    }
  }

  void experts(LayerSlots& s, const std::string& p, const ExpertShare& share) {
    s.experts.resize(static_cast<size_t>(share.count));
    for (size_t e = 0; e < s.experts.size(); ++e) {
      const int64_t number = share.first + static_cast<int64_t>(e);
      mlp(s.experts[e], p + "experts." + std::to_string(number) + ".", c_.moe_intermediate);
    }
  }

  void add(int64_t& slot, const std::string& name, Shape shape, ParameterGroup group,
           ParameterStart start = ParameterStart::kNormal) {
    if (group != wanted_) return;
    slot = next_;
    t_.list_.push_back({name, shape, group, start, next_});
    next_ += shape.elements();
  }

  const ModelConfig& c_;
  const ExpertShare share_;
  ParameterTable& t_;
  ParameterGroup wanted_ = ParameterGroup::kModel;
  int64_t next_ = 0;
};

ParameterTable::ParameterTable(const ModelConfig& config) : ParameterTable(config, ExpertShare{}) {}

ParameterTable::ParameterTable(const ModelConfig& config, const ExpertShare& share) {
  for (const LayerConfig& layer : config.layers) {
    if (layer.indexer == IndexerKind::kShared) {
      throw InputError(
          "train: the model shares an indexer between layers (indexer_types); only "
          "layers with their own indexer are trained");
    }
    if (layer.ffn == FfnKind::kMoe && config.softmax_scores) {
      throw InputError("train: scoring_func softmax; only sigmoid routers are trained");
    }
  }
  if (config.num_mtp_layers > 1) {
    throw InputError(
        "train: num_nextn_predict_layers: only one module of multi-token prediction is trained");
  }
  Builder(config, share, *this).build();
}

}  // namespace tamis
