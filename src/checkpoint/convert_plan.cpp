#include "checkpoint/convert_plan.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert_record.h"
#include "checkpoint/manifest.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxRanks = 1024;
constexpr int64_t kMaxConfig = 16 << 20;
constexpr int64_t kMaxSideFile = 256 << 20;
constexpr uint64_t kCacheLine = 64;

// Takes digits off the front of `text`; -1 if there are none or too many.
int take_digits(std::string_view* text) {
  size_t n = 0;
  int value = 0;
  while (n < text->size() && n < 6 && (*text)[n] >= '0' && (*text)[n] <= '9') {
    value = value * 10 + ((*text)[n++] - '0');
  }
  text->remove_prefix(n);
  return n == 0 ? -1 : value;
}

bool take(std::string_view expected, std::string_view* text) {
  if (text->substr(0, expected.size()) != expected) return false;
  text->remove_prefix(expected.size());
  return true;
}

// "model3-mp8.safetensors" -> 3, 8.
bool parse_rank_name(std::string_view name, int* rank, int* ranks) {
  if (!take("model", &name)) return false;
  *rank = take_digits(&name);
  if (*rank < 0 || !take("-mp", &name)) return false;
  *ranks = take_digits(&name);
  return *ranks > 0 && name == ".safetensors";
}

// Rank -> path of the per-rank files of a folder; empty if there are none.
std::map<int, std::string> find_rank_files(const std::string& folder, int* ranks) {
  std::map<int, std::string> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    int rank = 0, count = 0;
    if (!parse_rank_name(name, &rank, &count)) continue;
    if (!found.empty() && count != *ranks) {
      throw InputError(folder + ": holds files of " + std::to_string(*ranks) + " and of " +
                       std::to_string(count) + " ranks (model{rank}-mp{N}.safetensors)");
    }
    *ranks = count;
    found[rank] = entry.path().string();
  }
  if (error) throw InputError(folder + ": " + error.message());
  return found;
}

void open_ranks(const std::map<int, std::string>& files, int ranks, bool follow_links,
                ConvertSource* source) {
  if (ranks > kMaxRanks) {
    throw InputError(source->folder + ": " + std::to_string(ranks) + " ranks, at most " +
                     std::to_string(kMaxRanks));
  }
  if (files.rbegin()->first >= ranks) {
    throw InputError(files.rbegin()->second + ": rank " + std::to_string(files.rbegin()->first) +
                     " of " + std::to_string(ranks));
  }
  for (int rank = 0; rank < ranks; ++rank) {
    const auto it = files.find(rank);
    if (it == files.end()) {
      throw InputError(source->folder + ": model" + std::to_string(rank) + "-mp" +
                       std::to_string(ranks) + ".safetensors is missing");
    }
    if (!follow_links && fs::is_symlink(it->second)) {
      throw InputError(it->second + ": a link; pass --follow-links if you trust this folder");
    }
    source->ranks.emplace_back(it->second);
  }
  const std::string config = source->folder + "/config.json";
  if (!fs::exists(config)) {
    throw InputError(source->folder +
                     ": no config.json; copy the one of the Hugging Face checkpoint there (the "
                     "demo's own configuration file has other keys)");
  }
  source->config_text = read_text_file(config, kMaxConfig);
}

bool is_safetensors(std::string_view name) {
  constexpr std::string_view kEnd = ".safetensors";
  return name.size() >= kEnd.size() && name.substr(name.size() - kEnd.size()) == kEnd;
}

// Trailing zero bits of a length, counted up to those of a cache line.
int alignment_bits(int64_t bytes) {
  return std::countr_zero(static_cast<uint64_t>(bytes) | kCacheLine);
}

std::string shard_file_name(size_t shard, size_t shards) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1, shards);
  return name;
}

// Where a tensor comes in the reading order of the model: embedding, layers, final norm, head.
std::tuple<int, bool, int, ptrdiff_t> reading_order(const ConvertUnit& unit) {
  TensorPlace place;
  const TensorRole* role = role_of(unit.outputs.front().name, &place);
  constexpr int kLast = std::numeric_limits<int>::max();
  if (role == nullptr) return {kLast, true, 0, 0};
  const ptrdiff_t row = role - tensor_roles().data();
  const int layer = role->scope == TensorScope::kModel && row > 0 ? kLast : place.layer;
  return {layer, role->scope == TensorScope::kExpert, place.expert, row};
}

void sort_units(std::vector<ConvertUnit>* units) {
  std::stable_sort(units->begin(), units->end(), [](const ConvertUnit& a, const ConvertUnit& b) {
    return reading_order(a) < reading_order(b);
  });
}

std::string index_text(const std::vector<ConvertFile>& files) {
  std::map<std::string, std::string> weight_map;
  int64_t total = 0;
  for (const ConvertFile& file : files) {
    for (const TensorSpec& spec : file.specs()) weight_map[spec.name] = file.name;
    total += file.bytes();
  }
  const OrderedJson index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  return index.dump(2) + "\n";
}

}  // namespace

void ConvertSource::check_unchanged() const {
  if (checkpoint) checkpoint->check_unchanged();
  for (const SafetensorsFile& rank : ranks) rank.file().check_unchanged();
  if (base) base->check_unchanged();
  if (difference) difference->file().check_unchanged();
}

ConvertSource open_convert_source(const std::string& folder, bool follow_links) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw InputError(folder + ": not a folder; a model is a folder with config.json and weights");
  }
  ConvertSource source;
  source.folder = folder;
  int ranks = 0;
  const std::map<int, std::string> files = find_rank_files(folder, &ranks);
  if (files.empty()) {
    Checkpoint::Options options;
    options.follow_links = follow_links;
    source.checkpoint = Checkpoint::open(folder, options);
    source.config_text = source.checkpoint->config_text();
    return source;
  }
  if (fs::exists(folder + "/model.safetensors.index.json") ||
      fs::exists(folder + "/model.safetensors")) {
    throw InputError(folder +
                     ": holds a Hugging Face checkpoint and per-rank files; convert one "
                     "of them from a folder of its own");
  }
  open_ranks(files, ranks, follow_links, &source);
  return source;
}

int64_t ConvertUnit::bytes() const {
  int64_t total = 0;
  for (const TensorSpec& spec : outputs) total += dtype_bytes(spec.dtype, spec.shape.elements());
  return total;
}

std::vector<TensorSpec> ConvertFile::specs() const {
  std::vector<TensorSpec> specs;
  for (const ConvertUnit& unit : units) {
    specs.insert(specs.end(), unit.outputs.begin(), unit.outputs.end());
  }
  return specs;
}

int64_t ConvertFile::bytes() const {
  int64_t total = 0;
  for (const ConvertUnit& unit : units) total += unit.bytes();
  return total;
}

void align(ConvertFile* file) {
  std::stable_sort(file->units.begin(), file->units.end(),
                   [](const ConvertUnit& a, const ConvertUnit& b) {
                     return alignment_bits(a.bytes()) > alignment_bits(b.bytes());
                   });
}

void add_shards(std::vector<ConvertUnit> units, int64_t shard_bytes, ConvertPlan* plan) {
  sort_units(&units);
  std::vector<ConvertFile> files(1);
  int64_t filled = 0;
  for (ConvertUnit& unit : units) {
    const int64_t bytes = unit.bytes();
    if (!files.back().units.empty() && filled + bytes > shard_bytes) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().units.push_back(std::move(unit));
  }
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name = shard_file_name(i, files.size());
    align(&files[i]);
  }
  plan->files = std::move(files);
  plan->side_files.push_back({"model.safetensors.index.json", "", index_text(plan->files)});
}

std::vector<SideFile> side_files_of(const ConvertSource& source, const ConvertOptions& options,
                                    bool (*wanted)(std::string_view name)) {
  std::vector<SideFile> found;
  for (const auto& entry : fs::directory_iterator(source.folder)) {
    const std::string name = entry.path().filename().string();
    if (is_safetensors(name) || name == "config.json" || !wanted(name)) continue;
    // A link could name any file of its reader; Checkpoint refuses them for the same reason.
    if (entry.is_symlink() && !options.follow_links) continue;
    if (!entry.is_regular_file()) continue;
    if (static_cast<int64_t>(entry.file_size()) > kMaxSideFile) continue;
    found.push_back({name, entry.path().string(), ""});
  }
  std::sort(found.begin(), found.end(),
            [](const SideFile& a, const SideFile& b) { return a.name < b.name; });
  return found;
}

bool goes_along(std::string_view name) {
  return name.substr(0, 1) != "." && name.find(".tmp") == std::string_view::npos &&
         name != "model.safetensors.index.json" && name != kConvertRecordName &&
         name != kManifestName;
}

ConvertUnit copy_unit(const Tensor& tensor, std::string name) {
  ConvertUnit unit;
  unit.outputs.push_back({std::move(name), tensor.dtype, tensor.shape});
  unit.pieces.push_back({tensor.data, 1, tensor.bytes(), tensor.bytes()});
  return unit;
}

void report_unknown(const ConvertOptions& options, const std::string& folder, std::string_view name,
                    ConvertPlan* plan) {
  const std::string what = folder + ": tensor \"" + printable(name) + "\"";
  if (!options.keep_unknown) {
    throw InputError(what +
                     " is none that this model family has; pass --keep-unknown to copy it "
                     "as it is");
  }
  plan->notes.push_back(what + " is not known; copied as it is");
}

}  // namespace tamis
