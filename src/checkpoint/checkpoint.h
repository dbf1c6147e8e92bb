// A model folder in Hugging Face layout: config.json and the weights, either model.safetensors or
// shards named by model.safetensors.index.json. Everything is checked at open, from headers alone;
// weights are mapped and their pages read when they are touched. docs/formats/checkpoint.md has the
// rules.
//
//   const Checkpoint checkpoint = Checkpoint::open("models/tamis-mini");
//   const Tensor w = checkpoint.tensor("model.norm.weight");
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/weight.h"  // kFp8Block
#include "tensor/tensor.h"

namespace tamis {

struct ShardIndex;

class Checkpoint {
 public:
  struct Options {
    // Accept files that are links to outside the folder, as the snapshots of the Hugging Face cache
    // are. Off, such a link is an InputError: a downloaded folder must not name files of its
    // reader.
    bool follow_links = false;
  };

  struct Entry {
    const TensorInfo* info;
    int shard;  // index into shards()
  };

  // InputError naming the file and the tensor if anything is missing, short, or in contradiction.
  static Checkpoint open(const std::string& folder, const Options& options);
  static Checkpoint open(const std::string& folder) { return open(folder, Options()); }

  const std::string& folder() const { return folder_; }
  // The text of config.json; not parsed here beyond its size.
  const std::string& config_text() const { return config_text_; }

  bool contains(std::string_view name) const { return by_name_.count(name) != 0; }
  const TensorInfo* find(std::string_view name) const;  // null if absent
  // A view, valid as long as the checkpoint. InputError if absent, naming the folder.
  Tensor tensor(std::string_view name) const;

  // All tensors, shard by shard in the order of the data.
  std::span<const Entry> entries() const { return entries_; }
  std::span<const SafetensorsFile> shards() const { return shards_; }
  // File name of a shard within the folder.
  const std::string& shard_name(int shard) const {
    return shard_names_[static_cast<size_t>(shard)];
  }

  // Bytes of all tensors; of all weight files, headers included.
  int64_t total_bytes() const { return total_bytes_; }
  int64_t file_bytes() const { return file_bytes_; }

  // Reads every FP8 scale. InputError naming the first that is not finite and greater than 0.
  void check_scales() const;

  // InputError naming the shard if a file on disk is not the one that was opened: touching pages
  // past its new end would raise SIGBUS.
  void check_unchanged() const;

 private:
  Checkpoint() = default;
  void open_shards(const Options& options);
  void add_shard(const std::string& name, const Options& options);
  void check_index(const ShardIndex& index, const std::string& path) const;
  void check_fp8_shapes() const;

  std::string folder_;
  std::string config_text_;
  std::vector<std::string> shard_names_;
  std::vector<SafetensorsFile> shards_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, size_t> by_name_;  // views into the shards' headers
  int64_t total_bytes_ = 0;
  int64_t file_bytes_ = 0;
};

// InputError naming the tensor if an element of an FP8 scale is not finite and greater than 0.
void check_scale_values(std::string_view name, const Tensor& scale);

}  // namespace tamis
