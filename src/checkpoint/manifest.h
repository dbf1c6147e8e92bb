// MANIFEST.json: a checksum for every tensor and every file that decides how a model behaves. The
// safetensors format has none, so without it a flipped bit in a weight is found by nobody.
//
//   save_manifest(folder, compute_manifest(Checkpoint::open(folder), progress));
//   differences = compare_manifests(load_manifest(folder), compute_manifest(checkpoint, progress));
//
// A manifest finds damage; it does not prove who wrote the files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "checkpoint/checkpoint.h"

namespace tamis {

inline constexpr std::string_view kManifestName = "MANIFEST.json";

struct Manifest {
  struct File {
    int64_t bytes = 0;
    // Of the whole file; of a weight file only of the part before the data.
    std::string checksum;
  };
  struct Tensor {
    std::string shard;
    int64_t bytes = 0;
    std::string checksum;
  };
  std::map<std::string, File> files;  // config, tokenizer and weight files of the folder itself
  std::map<std::string, Tensor> tensors;
};

// Called now and then with the bytes read so far and in all.
using ManifestProgress = FunctionRef<void(int64_t done, int64_t total)>;

// Reads every byte of the checkpoint.
Manifest compute_manifest(const Checkpoint& checkpoint, ManifestProgress progress);

// Puts MANIFEST.json into the folder, whole or not at all.
void save_manifest(const std::string& folder, const Manifest& manifest);

// InputError if it is not there or not a manifest.
Manifest load_manifest(const std::string& folder);
Manifest parse_manifest(std::string_view text, const std::string& where);

// One line for each file and tensor that differs, is missing or is new; empty if all are equal.
std::vector<std::string> compare_manifests(const Manifest& want, const Manifest& found);

}  // namespace tamis
