#include "train/export.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

std::string exported_config(const ExportOptions& o, bool with_mtp) {
  OrderedJson json = parse_ordered_json(o.config_text, "config.json");
  if (!o.with_indexer) {
    json["model_type"] = "deepseek_v3";
    json["architectures"] = {"DeepseekV3ForCausalLM"};
    for (const char* key : {"index_topk", "index_n_heads", "index_head_dim"}) json.erase(key);
  } else if (o.topk > 0) {
    json["index_topk"] = o.topk;
  }
  if (o.yarn) {
    const YarnConfig& y = *o.yarn;
    json["rope_scaling"] = {{"type", "yarn"},
                            {"factor", y.factor},
                            {"original_max_position_embeddings", y.original_max_position},
                            {"beta_fast", y.beta_fast},
                            {"beta_slow", y.beta_slow},
                            {"mscale", y.mscale},
                            {"mscale_all_dim", y.mscale_all_dim}};
    json["max_position_embeddings"] = o.max_position;
    json.erase("rope_parameters");
    json["rope_theta"] = o.rope_theta;
  }
  json["torch_dtype"] = o.bf16 ? "bfloat16" : "float32";
  json["num_nextn_predict_layers"] = with_mtp ? 1 : 0;
  json.erase("quantization_config");
  return json.dump(2) + "\n";
}

// Checkpoints of this family repeat the embedding and the head within the module that predicts one
// more token, and readers look for them there.
void add_shared_tensors(const ParameterTable& table, std::vector<Parameter>& list) {
  const std::string p = "model.layers." + std::to_string(table.layers().size() - 1) + ".";
  for (const Parameter& own : table.list()) {
    Parameter copy = own;
    if (own.offset == table.embed()) {
      copy.name = p + "embed_tokens.weight";
      list.push_back(copy);
    }
    if (own.offset == table.head()) {
      copy.name = p + "shared_head.head.weight";
      list.push_back(copy);
    }
  }
}

void write_tensors(const ExportOptions& o, const ParameterTable& table,
                   const std::vector<float>& weights) {
  std::vector<Parameter> list;
  for (const Parameter& p : table.list()) {
    if (o.with_indexer || p.group != ParameterGroup::kIndexer) list.push_back(p);
  }
  if (table.mtp().eh_proj >= 0) add_shared_tensors(table, list);
  std::vector<TensorSpec> specs;
  const auto narrow = [&](const Parameter& p) { return o.bf16 && p.shape.rank() == 2; };
  for (const Parameter& p : list) {
    specs.push_back({p.name, narrow(p) ? DType::kBF16 : DType::kF32, p.shape});
  }
  SafetensorsWriter writer(o.folder + "/model.safetensors", specs, {{"format", "pt"}});
  std::vector<uint16_t> halves;
  for (const Parameter& p : list) {
    const std::span<const float> values(weights.data() + p.offset, static_cast<size_t>(p.size()));
    if (!narrow(p)) {
      writer.append_tensor(p.name, std::as_bytes(values));
      continue;
    }
    halves.clear();
    for (const float v : values) halves.push_back(float_to_bf16(v));
    writer.append_tensor(p.name, std::as_bytes(std::span(halves)));
  }
  writer.commit();
}

}  // namespace

void export_model(const ExportOptions& o, const ParameterTable& table,
                  const std::vector<float>& weights) {
  fs::create_directories(o.folder);
  write_tensors(o, table, weights);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    const fs::path from = fs::path(o.tokenizer) / name;
    if (!fs::exists(from)) continue;
    write_file_atomically(o.folder + "/" + name, read_text_file(from, 256 << 20));
  }
  // Last: a folder without it is no model.
  write_file_atomically(o.folder + "/config.json", exported_config(o, table.mtp().eh_proj >= 0));
}

}  // namespace tamis
