// tamis info: what a checkpoint is, from its headers alone; its manifest, written or verified.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "cli/commands.h"
#include "cli/info_summary.h"
#include "cli/support.h"
#include "model/config.h"

namespace tamis::cli {
namespace {

struct InfoFlags {
  std::string model;
  bool json = false;
  bool tensors = false;
  bool follow_links = false;
  bool write_manifest = false;
  bool verify_manifest = false;
};

// "11.6M", "685.4B": three or four digits are what a reader compares.
std::string human(int64_t n, double step, const char* const (&units)[5]) {
  double value = static_cast<double>(n);
  int unit = 0;
  while (value >= step && unit < 4) {
    value /= step;
    ++unit;
  }
  return unit == 0 ? fmt::format("{}{}", n, units[0]) : fmt::format("{:.1f}{}", value, units[unit]);
}
std::string human_count(int64_t n) { return human(n, 1000, {"", "K", "M", "B", "T"}); }
std::string human_bytes(int64_t n) {
  return human(n, 1024, {" B", " KiB", " MiB", " GiB", " TiB"});
}

// Says how far a long read is, once a second, from the first second on.
class ReadProgress {
 public:
  void operator()(int64_t done, int64_t total) {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    if (seconds < next_) return;
    next_ = seconds + 1;
    const double rate = static_cast<double>(done) / seconds;
    fmt::print(stderr, "\r{:5.1f} %  {:.2f} GB/s  {:.0f} s left ",
               100.0 * static_cast<double>(done) / static_cast<double>(total), rate / 1e9,
               static_cast<double>(total - done) / rate);
    std::fflush(stderr);
    if (done == total) fmt::print(stderr, "\n");
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
  double next_ = 1;
};

OrderedJson shape_json(const Shape& shape) {
  OrderedJson dims = OrderedJson::array();
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

OrderedJson tensors_json(const Checkpoint& checkpoint) {
  OrderedJson list = OrderedJson::array();
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    list.push_back({{"name", entry.info->name},
                    {"dtype", std::string(dtype_name(entry.info->dtype))},
                    {"shape", shape_json(entry.info->shape)},
                    {"bytes", entry.info->bytes},
                    {"shard", checkpoint.shard_name(entry.shard)}});
  }
  return list;
}

OrderedJson layers_json(const ModelConfig& config, const CheckpointSummary& s) {
  return {
      {"total", config.num_layers()},
      {"dense", s.dense_layers},
      {"moe", s.moe_layers},
      {"indexer", {{"none", s.no_indexer}, {"own", s.own_indexer}, {"shared", s.shared_indexer}}}};
}

std::string json_report(const Checkpoint& checkpoint, const ModelConfig& config,
                        const CheckpointSummary& s, bool with_tensors) {
  OrderedJson dtypes = OrderedJson::array(), shards = OrderedJson::array(),
              mtp = OrderedJson::array();
  for (const auto& [name, total] : s.dtypes) {
    dtypes.push_back({{"dtype", name},
                      {"tensors", total.tensors},
                      {"elements", total.elements},
                      {"bytes", total.bytes}});
  }
  for (size_t i = 0; i < checkpoint.shards().size(); ++i) {
    const SafetensorsFile& shard = checkpoint.shards()[i];
    shards.push_back({{"name", checkpoint.shard_name(static_cast<int>(i))},
                      {"tensors", shard.header().tensors.size()},
                      {"bytes", shard.file().size()}});
  }
  for (const MtpLayer& layer : s.mtp_layers) {
    mtp.push_back(
        {{"name", layer.name}, {"tensors", layer.tensors}, {"parameters", layer.parameters}});
  }
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? OrderedJson() : OrderedJson(text);
  };
  OrderedJson out = {
      {"folder", checkpoint.folder()},
      {"model_type", config.model_type},
      {"parameters", {{"total", s.parameters}, {"active_per_token", s.active_parameters}}},
      {"layers", layers_json(config, s)},
      {"mtp_layers", mtp},
      {"context", config.max_position},
      {"index_topk", config.has_indexer() ? OrderedJson(config.index_topk) : OrderedJson()},
      {"vocabulary", config.vocab_size},
      {"quantization", text_or_null(s.quantization)},
      {"dtypes", dtypes},
      {"tensors", checkpoint.entries().size()},
      {"tensor_bytes", checkpoint.total_bytes()},
      {"file_bytes", checkpoint.file_bytes()},
      {"shards", shards},
      {"tokenizer", s.has_tokenizer},
      {"chat_format", text_or_null(s.chat_format)},
      {"manifest", s.has_manifest}};
  if (with_tensors) out["tensor_list"] = tensors_json(checkpoint);
  return out.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

std::string indexer_line(const ModelConfig& config, const CheckpointSummary& s) {
  if (!config.has_indexer()) return "none: every layer attends to the whole context";
  std::string line =
      fmt::format("{} heads of {}, top-k {}; {} layers have their own", config.index_heads,
                  config.index_dim, config.index_topk, s.own_indexer);
  if (s.shared_indexer > 0) line += fmt::format(", {} share a lower layer's", s.shared_indexer);
  if (s.no_indexer > 0) line += fmt::format(", {} have none", s.no_indexer);
  return line;
}

std::string table_report(const Checkpoint& checkpoint, const ModelConfig& config,
                         const CheckpointSummary& s, bool with_tensors) {
  std::string out;
  const auto row = [&out](const char* key, const std::string& value) {
    out += fmt::format("{:<14} {}\n", key, value);
  };
  row("folder", printable(checkpoint.folder(), 1000));
  row("model type", config.model_type);
  row("parameters", fmt::format("{} in all, {} for a token", human_count(s.parameters),
                                human_count(s.active_parameters)));
  row("layers", fmt::format("{}: {} dense, {} mixture of experts", config.num_layers(),
                            s.dense_layers, s.moe_layers));
  if (config.num_experts > 0) {
    row("experts", fmt::format("{} routed, {} for a token, {} shared", config.num_experts,
                               config.experts_per_token, config.num_shared_experts));
  }
  row("indexer", indexer_line(config, s));
  row("context",
      fmt::format("{} tokens, vocabulary of {}", config.max_position, config.vocab_size));
  for (const MtpLayer& layer : s.mtp_layers) {
    row("prediction", fmt::format("{}: multi-token prediction, {} tensors, {} parameters",
                                  layer.name, layer.tensors, human_count(layer.parameters)));
  }
  row("quantisation", s.quantization.empty() ? "none" : s.quantization);
  for (const auto& [name, total] : s.dtypes) {
    row(name.c_str(), fmt::format("{} tensors, {}", total.tensors, human_bytes(total.bytes)));
  }
  row("weights", fmt::format("{} tensors in {} file{}, {}", checkpoint.entries().size(),
                             checkpoint.shards().size(), checkpoint.shards().size() == 1 ? "" : "s",
                             human_bytes(checkpoint.file_bytes())));
  row("tokenizer", s.has_tokenizer ? "tokenizer.json" : "none");
  row("chat format", s.chat_format.empty() ? "none recognised" : s.chat_format);
  row("manifest", s.has_manifest ? std::string(kManifestName) : "none");
  if (!with_tensors) return out;
  out += "\n";
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    out += fmt::format("{:<60} {:<8} {:<16} {:>12}  {}\n", entry.info->name,
                       dtype_name(entry.info->dtype), entry.info->shape.to_string(),
                       entry.info->bytes, checkpoint.shard_name(entry.shard));
  }
  return out;
}

int write_manifest_of(const Checkpoint& checkpoint) {
  checkpoint.check_scales();
  const Manifest manifest = compute_manifest(checkpoint, ReadProgress());
  save_manifest(checkpoint.folder(), manifest);
  write_stdout(fmt::format("{}/{}: {} tensors, {} files\n", checkpoint.folder(), kManifestName,
                           manifest.tensors.size(), manifest.files.size()));
  return 0;
}

int verify_manifest_of(const Checkpoint& checkpoint, bool json) {
  const Manifest want = load_manifest(checkpoint.folder());
  const std::vector<std::string> differences =
      compare_manifests(want, compute_manifest(checkpoint, ReadProgress()));
  if (json) {
    const OrderedJson out = {{"intact", differences.empty()}, {"differences", differences}};
    write_stdout(out.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
  } else if (differences.empty()) {
    write_stdout(
        fmt::format("intact: {} tensors, {} files\n", want.tensors.size(), want.files.size()));
  } else {
    std::string lines;
    for (const std::string& line : differences) lines += line + "\n";
    write_stdout(lines);
  }
  if (differences.empty()) return 0;
  throw InputError(fmt::format("{}: {} difference{} from {}", checkpoint.folder(),
                               differences.size(), differences.size() == 1 ? "" : "s",
                               kManifestName));
}

int run_info(const InfoFlags& flags) {
  const Checkpoint checkpoint = Checkpoint::open(flags.model, {flags.follow_links});
  if (flags.write_manifest) return write_manifest_of(checkpoint);
  if (flags.verify_manifest) return verify_manifest_of(checkpoint, flags.json);
  const ModelConfig config =
      ModelConfig::parse(checkpoint.config_text(), checkpoint.folder() + "/config.json");
  const CheckpointSummary summary = summarize(checkpoint, config);
  write_stdout(flags.json ? json_report(checkpoint, config, summary, flags.tensors)
                          : table_report(checkpoint, config, summary, flags.tensors));
  return 0;
}

}  // namespace

void add_info(CLI::App& app, CommandBody& chosen) {
  CLI::App* command = app.add_subcommand("info", "Say what a checkpoint is, from its headers");
  auto flags = std::make_shared<InfoFlags>();
  command->add_option("-m,--model", flags->model, "Checkpoint folder")->required();
  command->add_flag("--json", flags->json, "Print JSON");
  command->add_flag("--tensors", flags->tensors, "List every tensor");
  command->add_flag(
      "--follow-links", flags->follow_links,
      "Accept files that are links to outside the folder, as in the Hugging Face cache");
  auto* write = command->add_flag("--write-manifest", flags->write_manifest,
                                  "Read all weights and write MANIFEST.json, a checksum for each");
  command
      ->add_flag("--verify-manifest", flags->verify_manifest,
                 "Read all weights and name each tensor and file that differs from MANIFEST.json")
      ->excludes(write);
  command->footer(
      "Only headers are read, so this is quick on a checkpoint of any size; the two manifest "
      "flags\n"
      "read everything. Exit code 1 if a file is damaged, missing, or differs from the "
      "manifest.\n\n"
      "Examples:\n"
      "  tamis info -m models/tamis-mini\n"
      "  tamis info -m models/tamis-mini --json --tensors\n"
      "  tamis info -m models/tamis-mini --verify-manifest");
  command->callback([flags, &chosen] { chosen = [flags] { return run_info(*flags); }; });
}

}  // namespace tamis::cli
