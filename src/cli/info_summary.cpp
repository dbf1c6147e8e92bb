#include "cli/info_summary.h"

#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/manifest.h"
#include "text/chat.h"

namespace tamis::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLayerPrefix = "model.layers.";

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool is_scale(std::string_view name) { return contains(name, "_scale"); }

// N of "model.layers.N.", -1 for a tensor outside the layers.
int64_t layer_of(std::string_view name) {
  if (name.substr(0, kLayerPrefix.size()) != kLayerPrefix) return -1;
  int64_t layer = -1;
  std::from_chars(name.data() + kLayerPrefix.size(), name.data() + name.size(), layer);
  return layer;
}

void count_layers(const ModelConfig& config, CheckpointSummary& out) {
  for (const LayerConfig& layer : config.layers) {
    ++(layer.ffn == FfnKind::kMoe ? out.moe_layers : out.dense_layers);
    if (layer.indexer == IndexerKind::kNone) ++out.no_indexer;
    if (layer.indexer == IndexerKind::kOwn) ++out.own_indexer;
    if (layer.indexer == IndexerKind::kShared) ++out.shared_indexer;
  }
}

void count_tensors(const Checkpoint& checkpoint, const ModelConfig& config,
                   CheckpointSummary& out) {
  std::map<int64_t, MtpLayer> mtp;
  int64_t routed = 0;
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    const TensorInfo& info = *entry.info;
    const int64_t elements = info.shape.elements();
    DtypeTotal& total = out.dtypes[std::string(dtype_name(info.dtype))];
    ++total.tensors;
    total.elements += elements;
    total.bytes += info.bytes;
    const int64_t counted = is_scale(info.name) ? 0 : elements;
    const int64_t layer = layer_of(info.name);
    if (layer >= config.num_layers()) {
      MtpLayer& m = mtp[layer];
      m.name = std::string(kLayerPrefix) + std::to_string(layer);
      ++m.tensors;
      m.parameters += counted;
      continue;
    }
    out.parameters += counted;
    if (contains(info.name, ".mlp.experts.")) routed += counted;
  }
  for (auto& [layer, m] : mtp) out.mtp_layers.push_back(std::move(m));
  out.active_parameters = out.parameters - routed;
  if (config.num_experts > 0) {
    out.active_parameters += routed / config.num_experts * config.experts_per_token;
  }
}

std::string describe_quantization(const Checkpoint& checkpoint) {
  const Json root = parse_json(checkpoint.config_text(), checkpoint.folder() + "/config.json");
  const auto config = root.find("quantization_config");
  if (config == root.end() || !config->is_object()) return "";
  const auto text = [&](const char* key) {
    const auto it = config->find(key);
    return it != config->end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  std::string details = text("fmt");
  if (text("quant_method") == "fp8") details += ", blocks of 128x128";
  std::set<std::string> scales;
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    if (is_scale(entry.info->name)) scales.emplace(dtype_name(entry.info->dtype));
  }
  for (const std::string& dtype : scales) details += ", scales " + dtype;
  if (!text("scale_fmt").empty()) details += " as " + text("scale_fmt");
  while (details.substr(0, 2) == ", ") details.erase(0, 2);
  return printable(text("quant_method") + (details.empty() ? "" : " (" + details + ")"));
}

}  // namespace

CheckpointSummary summarize(const Checkpoint& checkpoint, const ModelConfig& config) {
  CheckpointSummary out;
  count_layers(config, out);
  count_tensors(checkpoint, config, out);
  out.quantization = describe_quantization(checkpoint);
  const fs::path folder = checkpoint.folder();
  std::error_code error;
  out.has_tokenizer = fs::exists(folder / "tokenizer.json", error);
  out.has_manifest = fs::exists(folder / kManifestName, error);
  try {
    out.chat_format = chat_format_name(detect_chat_format(checkpoint.folder()));
  } catch (const InputError&) {
    // A base model has no chat format; info says so and goes on.
  }
  return out;
}

}  // namespace tamis::cli
