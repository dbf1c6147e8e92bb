// config.json of a DeepSeek-V3 / V3.1 / V3.2 / GLM-5 checkpoint, turned into per-layer descriptors.
//
// After parsing no code asks for the model's name: what a layer is stands in its LayerConfig.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/rope/rope.h"

namespace tamis {

enum class FfnKind : uint8_t { kDense, kMoe };

// Where a layer's selection comes from.
enum class IndexerKind : uint8_t {
  kNone,    // attends to everything (V3, V3.1)
  kOwn,     // has a lightning indexer
  kShared,  // reuses the selection of the nearest layer below that has its own
};

struct LayerConfig {
  FfnKind ffn = FfnKind::kDense;
  IndexerKind indexer = IndexerKind::kNone;
};

struct ModelConfig {
  std::string model_type;
  int64_t vocab_size = 0, hidden_size = 0;
  std::vector<LayerConfig> layers;
  int64_t num_mtp_layers = 0;  // multi-token-prediction layers that follow the main ones
  LayerConfig mtp_layer;

  // MLA. Symbols of the paper: q_lora = d'_c, kv_lora = d_c.
  int64_t num_heads = 0, q_lora = 0, kv_lora = 0, nope = 0, rope = 0, v_head = 0;
  // Indexer; 0 where no layer has one.
  int64_t index_heads = 0, index_dim = 0, index_topk = 0;
  RopeLayout index_rope = RopeLayout::kHalfSplit;
  // FFN.
  int64_t intermediate = 0, moe_intermediate = 0;
  int64_t num_experts = 0, num_shared_experts = 0, experts_per_token = 0;
  int64_t num_groups = 1, topk_group = 1;
  float routed_scaling_factor = 1;
  bool norm_topk_prob = true, softmax_scores = false;

  float norm_eps = 1e-6F;
  // q_a_layernorm and kv_a_layernorm use 1e-6 whatever rms_norm_eps says (docs/numerics.md 1).
  float lora_norm_eps = 1e-6F;
  double rope_theta = 10000;
  std::optional<YarnConfig> yarn;
  int64_t max_position = 0;
  bool tie_word_embeddings = false;
  bool ue8m0_scales = false;  // quantization_config.scale_fmt
  int64_t bos_id = -1;
  std::vector<int64_t> eos_ids;

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  int64_t qk_head() const { return nope + rope; }
  const YarnConfig* yarn_or_null() const { return yarn ? &*yarn : nullptr; }
  bool has_indexer() const { return index_topk > 0; }
  float softmax_scale() const {
    return static_cast<float>(mla_softmax_scale(qk_head(), yarn_or_null()));
  }

  // InputError "WHERE: key: ..." for a missing key, a wrong type, a value out of range or an
  // architecture that Tamis does not have. Unknown keys are ignored; nothing is ever executed.
  static ModelConfig parse(std::string_view json, const std::string& where);
};

}  // namespace tamis
