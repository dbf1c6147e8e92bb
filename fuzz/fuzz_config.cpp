// Any bytes as config.json, as the index of the shards, and as a manifest. An accepted config makes
// no tensor of 2^47 elements; an accepted index names files of the folder itself only.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "checkpoint/manifest.h"
#include "checkpoint/shard_index.h"
#include "model/config.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check_size(std::initializer_list<int64_t> factors) {
  double product = 1;
  for (const int64_t factor : factors) {
    require(factor >= 0);
    product *= static_cast<double>(factor);
  }
  require(product <= static_cast<double>(int64_t{1} << 47));
}

void check_config(const tamis::ModelConfig& c) {
  require(c.num_layers() >= 1 && c.num_layers() <= 4096);
  check_size({c.vocab_size, c.hidden_size});
  check_size({c.num_heads, c.qk_head(), c.q_lora});
  check_size({c.num_heads, c.nope + c.v_head, c.kv_lora});
  check_size({c.num_heads, c.v_head, c.hidden_size});
  check_size({c.q_lora, c.hidden_size});
  check_size({c.index_heads, c.index_dim, c.q_lora});
  check_size({c.index_heads, c.hidden_size});
  check_size({c.intermediate, c.hidden_size});
  check_size({c.num_experts, c.moe_intermediate, c.hidden_size});
  check_size({c.num_shared_experts, c.moe_intermediate, c.hidden_size});
  check_size({c.max_position, c.num_layers(), c.kv_lora + c.rope + c.index_dim});
  require(c.experts_per_token <= c.num_experts);
  require(c.num_groups >= 1 && c.topk_group >= 1 && c.topk_group <= c.num_groups);
  require(c.index_topk <= c.max_position);
  require(c.layers[0].indexer != tamis::IndexerKind::kShared);
  for (const tamis::LayerConfig& layer : c.layers) {
    if (layer.ffn == tamis::FfnKind::kMoe) require(c.num_experts > 0 && c.moe_intermediate > 0);
    if (layer.ffn == tamis::FfnKind::kDense) require(c.intermediate > 0);
    if (layer.indexer != tamis::IndexerKind::kNone) require(c.index_topk > 0);
  }
  for (const int64_t id : c.eos_ids) require(id >= 0 && id < c.vocab_size);
}

void check_index(const tamis::ShardIndex& index) {
  require(!index.weight_map.empty() && !index.shards.empty());
  for (const auto& [tensor, shard] : index.weight_map) {
    require(shard.size() >= 12 && shard.substr(shard.size() - 12) == ".safetensors");
    require(shard.find('/') == std::string::npos && shard.find('\\') == std::string::npos);
    require(shard.find('\0') == std::string::npos);
    require(index.shards.count(shard) == 1);
  }
}

template <typename Parse>
void refuse_or_check(Parse parse) {
  try {
    parse();
  } catch (const tamis::InputError&) {
    // Refused: what the rules are for.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // One parser for an input: the one whose key it holds, so that no run is spent on the others.
  if (text.find("weight_map") != text.npos) {
    refuse_or_check([&] { check_index(tamis::parse_shard_index(text, "fuzz")); });
  } else if (text.find("tamis-manifest") != text.npos) {
    refuse_or_check([&] { tamis::parse_manifest(text, "fuzz"); });
  } else {
    refuse_or_check([&] { check_config(tamis::ModelConfig::parse(text, "fuzz")); });
  }
  return 0;
}
