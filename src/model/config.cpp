#include "model/config.h"

#include <cmath>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace tamis {
namespace {

constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = 1 << 24;
constexpr int64_t kMaxContext = int64_t{1} << 30;
constexpr int64_t kMaxElements = int64_t{1} << 47;

class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json_.is_object()) throw InputError(where_ + ": want a JSON object");
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  int64_t integer(const char* key, int64_t low, int64_t high) const {
    const Json& v = at(key);
    if (!v.is_number_integer()) fail(key, "want an integer, got " + printable(v.dump(), 40));
    // A value above 2^63 is stored unsigned.
    if (v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(high)) {
      fail(key, "got " + v.dump() + ", want at most " + std::to_string(high));
    }
    const auto n = v.get<int64_t>();
    if (n < low || n > high) {
      fail(key, "got " + std::to_string(n) + ", want " + std::to_string(low) + " to " +
                    std::to_string(high));
    }
    return n;
  }
  int64_t integer_or(const char* key, int64_t fallback, int64_t low, int64_t high) const {
    return has(key) ? integer(key, low, high) : fallback;
  }
  double number(const char* key, double low, double high) const {
    const Json& v = at(key);
    if (!v.is_number()) fail(key, "want a number, got " + printable(v.dump(), 40));
    const auto x = v.get<double>();
    if (!(x >= low && x <= high)) fail(key, "got " + v.dump() + ", out of range");
    return x;
  }
  double number_or(const char* key, double fallback, double low, double high) const {
    return has(key) ? number(key, low, high) : fallback;
  }
  bool boolean_or(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!json_[key].is_boolean()) fail(key, "want true or false");
    return json_[key].get<bool>();
  }
  std::string text(const char* key) const {
    const Json& v = at(key);
    if (!v.is_string()) fail(key, "want a string");
    return v.get<std::string>();
  }
  std::string text_or(const char* key, const std::string& fallback) const {
    return has(key) ? text(key) : fallback;
  }
  Reader object(const char* key) const { return {at(key), where_ + ": " + key}; }
  const Json& at(const char* key) const {
    if (!has(key)) fail(key, "missing");
    return json_[key];
  }
  [[noreturn]] void fail(const char* key, const std::string& what) const {
    throw InputError(where_ + ": " + key + ": " + what);
  }

 private:
  const Json& json_;
  std::string where_;
};

// A per-layer list of strings, each one of two names.
std::vector<bool> layer_flags(const Reader& in, const char* key, int64_t layers, const char* no,
                              const char* yes) {
  const Json& list = in.at(key);
  if (!list.is_array() || static_cast<int64_t>(list.size()) < layers) {
    in.fail(key, "want a list of " + std::to_string(layers) + " strings");
  }
  std::vector<bool> flags;
  for (int64_t l = 0; l < layers; ++l) {
    const Json& v = list[static_cast<size_t>(l)];
    if (v != no && v != yes) in.fail(key, std::string("want \"") + no + "\" or \"" + yes + "\"");
    flags.push_back(v == yes);
  }
  return flags;
}

void read_sizes(const Reader& in, ModelConfig& c) {
  c.vocab_size = in.integer("vocab_size", 1, kMaxWidth);
  c.hidden_size = in.integer("hidden_size", 1, kMaxWidth);
  c.num_heads = in.integer("num_attention_heads", 1, 4096);
  c.q_lora = in.integer("q_lora_rank", 1, kMaxWidth);
  c.kv_lora = in.integer("kv_lora_rank", 1, 8192);
  c.nope = in.integer("qk_nope_head_dim", 1, 8192);
  c.rope = in.integer("qk_rope_head_dim", 2, 8192);
  if (c.rope % 2 != 0) in.fail("qk_rope_head_dim", "must be even");
  c.v_head = in.integer("v_head_dim", 1, 8192);
  c.norm_eps = static_cast<float>(in.number("rms_norm_eps", 1e-12, 1));
  c.max_position = in.integer("max_position_embeddings", 1, kMaxContext);
  c.tie_word_embeddings = in.boolean_or("tie_word_embeddings", false);
  if (in.boolean_or("attention_bias", false)) in.fail("attention_bias", "true is not supported");
  if (in.text_or("hidden_act", "silu") != "silu") in.fail("hidden_act", "want \"silu\"");
}

void read_ffn(const Reader& in, ModelConfig& c, int64_t layers) {
  c.intermediate = in.integer_or("intermediate_size", 0, 1, kMaxWidth);
  std::vector<bool> moe;
  if (in.has("mlp_layer_types")) {
    moe = layer_flags(in, "mlp_layer_types", layers, "dense", "sparse");
  } else {
    const int64_t first = in.integer_or("first_k_dense_replace", 0, 0, kMaxLayers);
    const int64_t every = in.integer_or("moe_layer_freq", 1, 1, kMaxLayers);
    for (int64_t l = 0; l < layers; ++l) moe.push_back(l >= first && l % every == 0);
  }
  bool any_moe = c.num_mtp_layers > 0, any_dense = false;
  for (int64_t l = 0; l < layers; ++l) {
    const bool is_moe = moe[static_cast<size_t>(l)];
    c.layers[static_cast<size_t>(l)].ffn = is_moe ? FfnKind::kMoe : FfnKind::kDense;
    (is_moe ? any_moe : any_dense) = true;
  }
  if (any_dense && c.intermediate == 0) in.fail("intermediate_size", "missing");
  if (!any_moe) return;
  c.mtp_layer.ffn = FfnKind::kMoe;
  c.moe_intermediate = in.integer("moe_intermediate_size", 1, kMaxWidth);
  c.num_experts = in.integer("n_routed_experts", 1, 65536);
  c.num_shared_experts = in.integer_or("n_shared_experts", 0, 0, 256);
  c.experts_per_token = in.integer("num_experts_per_tok", 1, c.num_experts);
  c.num_groups = in.integer_or("n_group", 1, 1, c.num_experts);
  c.topk_group = in.integer_or("topk_group", 1, 1, c.num_groups);
  if (c.num_experts % c.num_groups != 0) in.fail("n_group", "does not divide n_routed_experts");
  if (c.topk_group * (c.num_experts / c.num_groups) < c.experts_per_token) {
    in.fail("topk_group", "the kept groups hold fewer experts than num_experts_per_tok");
  }
  c.routed_scaling_factor = static_cast<float>(in.number_or("routed_scaling_factor", 1, 0, 1e6));
  c.norm_topk_prob = in.boolean_or("norm_topk_prob", true);
  const std::string scoring = in.text_or("scoring_func", "sigmoid");
  if (scoring != "sigmoid" && scoring != "softmax") {
    in.fail("scoring_func", "want \"sigmoid\" or \"softmax\"");
  }
  c.softmax_scores = scoring == "softmax";
}

// GLM-5: the list, or its generating rule, or every layer its own indexer.
std::vector<bool> own_indexers(const Reader& in, int64_t layers) {
  if (in.has("indexer_types")) return layer_flags(in, "indexer_types", layers, "shared", "full");
  const int64_t freq = in.integer_or("index_topk_freq", 1, 1, kMaxLayers);
  const int64_t offset = in.integer_or("index_skip_topk_offset", 0, 0, kMaxLayers);
  std::vector<bool> own;
  for (int64_t l = 0; l < layers; ++l) {
    own.push_back(std::max<int64_t>(l - offset + 1, 0) % freq == 0 || l == 0);
  }
  return own;
}

void read_indexer(const Reader& in, ModelConfig& c, bool glm) {
  c.index_heads = in.integer("index_n_heads", 1, 4096);
  c.index_dim = in.integer("index_head_dim", 1, 8192);
  c.index_topk = in.integer("index_topk", 1, kMaxContext);
  if (c.index_topk > c.max_position) {
    in.fail("index_topk",
            "exceeds max_position_embeddings (" + std::to_string(c.max_position) + ")");
  }
  if (c.rope > c.index_dim) in.fail("index_head_dim", "smaller than qk_rope_head_dim");
  if (in.boolean_or("indexer_rope_interleave", glm)) c.index_rope = RopeLayout::kInterleaved;
  const std::vector<bool> own = own_indexers(in, c.num_layers());
  if (!own.front()) in.fail("indexer_types", "the first layer has no layer below to share with");
  for (size_t l = 0; l < own.size(); ++l) {
    c.layers[l].indexer = own[l] ? IndexerKind::kOwn : IndexerKind::kShared;
  }
  c.mtp_layer.indexer = IndexerKind::kOwn;
}

void read_yarn(const Reader& in, ModelConfig& c) {
  const char* kind = in.has("rope_type") ? "rope_type" : "type";
  const std::string type = in.text_or(kind, "default");
  if (type == "default") return;
  if (type != "yarn")
    in.fail(kind, "want \"yarn\" or \"default\", got \"" + printable(type) + "\"");
  YarnConfig y;
  y.factor = in.number("factor", 1e-3, 1e6);
  y.beta_fast = in.number_or("beta_fast", 32, 1e-6, 1e6);
  y.beta_slow = in.number_or("beta_slow", 1, 1e-6, 1e6);
  y.original_max_position = in.integer("original_max_position_embeddings", 1, kMaxContext);
  y.has_mscale = in.has("mscale") && in.has("mscale_all_dim");
  y.mscale = in.number_or("mscale", 1, 0, 1e3);
  y.mscale_all_dim = in.number_or("mscale_all_dim", 0, 0, 1e3);
  c.yarn = y;
}

void read_rope(const Reader& in, ModelConfig& c) {
  c.rope_theta = in.number_or("rope_theta", 10000, 1.0 + 1e-6, 1e15);
  if (in.has("rope_parameters")) {
    const Reader rope = in.object("rope_parameters");
    c.rope_theta = rope.number_or("rope_theta", c.rope_theta, 1.0 + 1e-6, 1e15);
    read_yarn(rope, c);
  } else if (in.has("rope_scaling")) {
    read_yarn(in.object("rope_scaling"), c);
  }
}

void read_quantization(const Reader& in, ModelConfig& c) {
  if (!in.has("quantization_config")) return;
  const Reader q = in.object("quantization_config");
  const std::string method = q.text("quant_method");
  if (method.rfind("tamis-", 0) == 0) return;
  if (method != "fp8") q.fail("quant_method", "want \"fp8\", got \"" + printable(method) + "\"");
  if (q.has("weight_block_size")) {
    const Json& block = q.at("weight_block_size");
    if (block != Json::array({128, 128})) q.fail("weight_block_size", "want [128,128]");
  }
  const std::string format = q.text_or("scale_fmt", "float");
  if (format != "ue8m0" && format != "float") q.fail("scale_fmt", "want \"ue8m0\" or none");
  c.ue8m0_scales = format == "ue8m0";
}

// No tensor and no cache row of an accepted model may pass 2^47 elements: sizes computed from these
// numbers later, in bytes and with a factor of layers or threads, then stay far below 2^63.
void limit_product(const Reader& in, const char* key, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product) || product >= kMaxElements) {
      in.fail(key, "makes a tensor of more than 2^47 elements");
    }
  }
}

void limit_derived_sizes(const Reader& in, const ModelConfig& c) {
  limit_product(in, "vocab_size", {c.vocab_size, c.hidden_size});
  limit_product(in, "q_lora_rank", {c.num_heads, c.qk_head(), c.q_lora});
  limit_product(in, "q_lora_rank", {c.q_lora, c.hidden_size});
  limit_product(in, "kv_lora_rank", {c.num_heads, c.nope + c.v_head, c.kv_lora});
  limit_product(in, "v_head_dim", {c.num_heads, c.v_head, c.hidden_size});
  limit_product(in, "index_n_heads", {c.index_heads, c.index_dim, c.q_lora});
  limit_product(in, "index_n_heads", {c.index_heads, c.hidden_size});
  limit_product(in, "intermediate_size", {c.intermediate, c.hidden_size});
  limit_product(in, "n_routed_experts", {c.num_experts, c.moe_intermediate, c.hidden_size});
  limit_product(in, "n_shared_experts", {c.num_shared_experts, c.moe_intermediate, c.hidden_size});
  const int64_t entry = c.kv_lora + c.rope + c.index_dim;
  limit_product(in, "max_position_embeddings", {c.max_position, entry, c.num_layers()});
}

void read_token_ids(const Reader& in, ModelConfig& c) {
  c.bos_id = in.integer_or("bos_token_id", -1, 0, c.vocab_size - 1);
  if (!in.has("eos_token_id")) return;
  const Json& eos = in.at("eos_token_id");
  if (!eos.is_array()) {
    c.eos_ids.push_back(in.integer("eos_token_id", 0, c.vocab_size - 1));
    return;
  }
  for (const Json& id : eos) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= c.vocab_size) {
      in.fail("eos_token_id", "want ids below vocab_size");
    }
    c.eos_ids.push_back(id.get<int64_t>());
  }
}

}  // namespace

ModelConfig ModelConfig::parse(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  const Reader in(json, where);
  ModelConfig c;
  c.model_type = in.text("model_type");
  const bool v3 = c.model_type == "deepseek_v3", v32 = c.model_type == "deepseek_v32";
  const bool glm = c.model_type == "glm_moe_dsa";
  if (!v3 && !v32 && !glm) {
    in.fail("model_type", "got \"" + printable(c.model_type) +
                              "\", want deepseek_v3, deepseek_v32 or glm_moe_dsa");
  }
  read_sizes(in, c);
  const int64_t layers = in.integer("num_hidden_layers", 1, kMaxLayers);
  c.layers.resize(static_cast<size_t>(layers));
  c.num_mtp_layers = in.integer_or("num_nextn_predict_layers", 0, 0, 64);
  read_ffn(in, c, layers);
  // A deepseek_v32 without index_topk is an error, not a dense model: other engines went dense
  // silently.
  if (v32 || glm) read_indexer(in, c, glm);
  read_rope(in, c);
  read_quantization(in, c);
  read_token_ids(in, c);
  limit_derived_sizes(in, c);
  return c;
}

}  // namespace tamis
