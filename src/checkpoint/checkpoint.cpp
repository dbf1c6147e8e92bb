#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/difference.h"
#include "checkpoint/shard_index.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigName[] = "config.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr int64_t kMaxConfig = 16 << 20;
constexpr int64_t kMaxIndex = 100 << 20;

std::string quote(std::string_view text) { return "\"" + printable(text) + "\""; }

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// A weight file by its name: "model.safetensors", "model-00001-of-00002.safetensors". Other
// .safetensors files may lie beside the weights.
bool is_weight_name(std::string_view name) {
  return name.substr(0, 5) == "model" && ends_with(name, ".safetensors");
}

// The path of a file of the folder, after making sure that it does not lead out of it.
std::string path_within(const std::string& folder, const std::string& name, bool follow_links) {
  const fs::path path = fs::path(folder) / name;
  std::error_code error;
  if (fs::is_symlink(fs::symlink_status(path, error))) {
    const fs::path target = fs::canonical(path, error);
    if (error) throw InputError(path.string() + ": a link to a file that is not there");
    if (!follow_links && target.parent_path() != fs::canonical(folder, error)) {
      throw InputError(path.string() +
                       ": a link to a file outside the folder; pass --follow-links if you trust "
                       "this folder (the Hugging Face cache links its snapshots this way)");
    }
  }
  // Opening a pipe would wait for a writer.
  if (!fs::is_regular_file(path, error)) throw InputError(path.string() + ": not a regular file");
  return path.string();
}

// A weight file that the index does not list is from another save: its tensors would be lost.
void reject_unlisted(const std::string& folder, const std::set<std::string>& shards,
                     const std::string& listed_by) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (is_weight_name(name) && shards.count(name) == 0) {
      throw InputError(folder + ": " + quote(name) + " is in the folder but not in " + listed_by);
    }
  }
  if (error) throw InputError(folder + ": " + error.message());
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& folder, const Options& options) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw InputError(folder + ": not a folder; a model is a folder with config.json and weights");
  }
  if (!fs::exists(fs::symlink_status(fs::path(folder) / kConfigName, error))) {
    const bool difference = fs::exists(fs::path(folder) / kDifferenceName, error);
    throw InputError(folder + (difference
                                   ? ": holds a difference, not a model; `tamis convert BASE "
                                     "OUT --add " +
                                         folder + "` restores the model"
                                   : ": no config.json"));
  }
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.config_text_ =
      read_text_file(path_within(folder, kConfigName, options.follow_links), kMaxConfig);
  checkpoint.open_shards(options);
  checkpoint.check_fp8_shapes();
  return checkpoint;
}

void Checkpoint::add_shard(const std::string& name, const Options& options) {
  shards_.emplace_back(path_within(folder_, name, options.follow_links));
  shard_names_.push_back(name);
  const int shard = static_cast<int>(shards_.size()) - 1;
  const SafetensorsFile& file = shards_.back();
  file_bytes_ += file.file().size();
  for (const TensorInfo& info : file.header().tensors) {
    const auto [it, is_new] = by_name_.emplace(info.name, entries_.size());
    if (!is_new) {
      throw InputError(folder_ + ": tensor " + quote(info.name) + " is both in " +
                       quote(shard_name(entries_[it->second].shard)) + " and in " + quote(name));
    }
    entries_.push_back({&info, shard});
    total_bytes_ += info.bytes;
  }
}

void Checkpoint::open_shards(const Options& options) {
  std::error_code error;
  const fs::path index_path = fs::path(folder_) / kIndexName;
  if (!fs::exists(fs::symlink_status(index_path, error))) {
    if (!fs::exists(fs::symlink_status(fs::path(folder_) / kSingleName, error))) {
      throw InputError(folder_ + ": neither " + kSingleName + " nor " + kIndexName);
    }
    reject_unlisted(folder_, {kSingleName},
                    "an index (there is no " + std::string(kIndexName) + ")");
    return add_shard(kSingleName, options);
  }
  const std::string path = path_within(folder_, kIndexName, options.follow_links);
  const ShardIndex index = parse_shard_index(read_text_file(path, kMaxIndex), path);
  reject_unlisted(folder_, index.shards, kIndexName);
  for (const std::string& name : index.shards) {
    if (!fs::exists(fs::symlink_status(fs::path(folder_) / name, error))) {
      throw InputError(path + ": the shard " + quote(name) + " is not in the folder");
    }
    add_shard(name, options);
  }
  check_index(index, path);
}

void Checkpoint::check_index(const ShardIndex& index, const std::string& path) const {
  for (const auto& [tensor, name] : index.weight_map) {
    const auto it = by_name_.find(tensor);
    if (it == by_name_.end() || shard_name(entries_[it->second].shard) != name) {
      throw InputError(path + ": tensor " + quote(tensor) + " is not in its shard " + quote(name));
    }
  }
  if (index.weight_map.size() != entries_.size()) {
    std::set<std::string_view> listed;
    for (const auto& [tensor, name] : index.weight_map) listed.insert(tensor);
    for (const Entry& entry : entries_) {
      if (listed.count(entry.info->name) == 0) {
        throw InputError(path + ": tensor " + quote(entry.info->name) + " of the shard " +
                         quote(shard_name(entry.shard)) + " is not in weight_map");
      }
    }
  }
  if (index.total_size >= 0 && index.total_size != total_bytes_) {
    throw InputError(path + ": metadata.total_size is " + std::to_string(index.total_size) +
                     ", the tensors of the shards have " + std::to_string(total_bytes_) + " bytes");
  }
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : entries_[it->second].info;
}

Tensor Checkpoint::tensor(std::string_view name) const {
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) throw InputError(folder_ + ": no tensor " + quote(name));
  const Entry& entry = entries_[it->second];
  return shards_[static_cast<size_t>(entry.shard)].tensor(*entry.info);
}

void Checkpoint::check_unchanged() const {
  for (const SafetensorsFile& shard : shards_) shard.file().check_unchanged();
}

}  // namespace tamis
