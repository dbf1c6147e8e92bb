// A tiny model with one of everything, and batches for it. Test code only.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "train/model.h"
#include "train/random.h"
#include "train/weights_io.h"

namespace tamis {

inline std::string tiny_config_json() {
  return R"({"model_type": "deepseek_v32", "vocab_size": 19, "hidden_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 10,
    "kv_lora_rank": 9, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "intermediate_size": 14, "moe_intermediate_size": 7, "n_routed_experts": 6,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "routed_scaling_factor": 1.5,
    "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "index_n_heads": 3, "index_head_dim": 6, "index_topk": 4, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "rope_scaling": null, "max_position_embeddings": 512,
    "tie_word_embeddings": false, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1,
    "num_nextn_predict_layers": 0, "attention_bias": false})";
}

inline ModelConfig tiny_config() { return ModelConfig::parse(tiny_config_json(), "tiny"); }
inline ModelConfig tiny_config_with_mtp() {
  std::string json = tiny_config_json();
  const std::string key = "\"num_nextn_predict_layers\": ";
  json.replace(json.find(key), key.size() + 1, key + "1");
  return ModelConfig::parse(json, "tiny");
}

// Values with a deviation at which no part of the model is linear, and biases that are not 0.
inline std::vector<float> tiny_values(const ParameterTable& table) {
  std::vector<float> values(static_cast<size_t>(table.size()));
  draw_values(table, 7, 0.5, values.data());
  Random random(8, 0);
  for (const Parameter& p : table.list()) {
    if (p.start == ParameterStart::kNormal) continue;
    for (int64_t i = 0; i < p.size(); ++i) {
      values[static_cast<size_t>(p.offset + i)] += static_cast<float>(0.4 * (random.unit() - 0.5));
    }
  }
  return values;
}

// Sequences of these lengths; every fifth token has no target, nor has a sequence's last.
inline MicroBatch tiny_batch(const std::vector<int64_t>& lengths, int64_t vocabulary) {
  MicroBatch b;
  Random random(9, 1);
  b.begins.push_back(0);
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t)
      b.ids.push_back(static_cast<int32_t>(random.below(vocabulary)));
    for (int64_t t = 0; t < length; ++t) {
      const auto next = static_cast<size_t>(b.begins.back() + t + 1);
      b.targets.push_back(t + 1 == length || t % 5 == 4 ? -1 : b.ids[next]);
    }
    b.begins.push_back(b.begins.back() + length);
  }
  return b;
}

}  // namespace tamis
