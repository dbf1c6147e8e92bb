#include "checkpoint/manifest.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/checksum.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr char kFormat[] = "tamis-manifest";
constexpr int kVersion = 1;
constexpr char kHash[] = "xxh3-128";
constexpr int64_t kMaxManifest = 100 << 20;
constexpr int64_t kPiece = 16 << 20;  // bytes between two calls of the progress function

// The files beside the weights that change what a model answers.
constexpr const char* kSideFiles[] = {
    "config.json",         "generation_config.json", "model.safetensors.index.json",
    "tokenizer.json",      "tokenizer_config.json",  "special_tokens_map.json",
    "chat_template.jinja",
};

std::string quote(std::string_view text) { return "\"" + printable(text) + "\""; }

class Reader {
 public:
  Reader(int64_t total, ManifestProgress progress) : total_(total), progress_(progress) {}

  std::string checksum(std::span<const std::byte> bytes) {
    Checksum sum;
    while (!bytes.empty()) {
      const auto piece = bytes.first(std::min<size_t>(bytes.size(), kPiece));
      sum.update(piece);
      bytes = bytes.subspan(piece.size());
      done_ += static_cast<int64_t>(piece.size());
      if (done_ - told_ >= kPiece || done_ == total_) progress_(told_ = done_, total_);
    }
    return sum.hex();
  }

 private:
  int64_t total_, done_ = 0, told_ = 0;
  ManifestProgress progress_;
};

std::span<const std::byte> all_bytes(const MappedFile& file) {
  return {file.data(), static_cast<size_t>(file.size())};
}

std::vector<MappedFile> open_side_files(const std::string& folder) {
  std::vector<MappedFile> files;
  std::error_code error;
  for (const char* name : kSideFiles) {
    const fs::path path = fs::path(folder) / name;
    if (fs::is_regular_file(path, error)) files.emplace_back(path.string());
  }
  return files;
}

[[noreturn]] void malformed(const std::string& where, const std::string& what) {
  throw InputError(where + ": " + what);
}

std::string read_string(const Json& entry, const char* key, const std::string& where) {
  const auto it = entry.find(key);
  if (it == entry.end() || !it->is_string()) malformed(where, std::string("no string ") + key);
  return it->get<std::string>();
}

int64_t read_bytes(const Json& entry, const std::string& where) {
  const auto it = entry.find("bytes");
  if (it == entry.end() || !it->is_number_unsigned() || it->get<uint64_t>() > uint64_t{INT64_MAX}) {
    malformed(where, "no number of bytes");
  }
  return it->get<int64_t>();
}

const Json& read_object(const Json& root, const char* key, const std::string& where) {
  const auto it = root.find(key);
  if (it == root.end() || !it->is_object()) malformed(where, std::string("no object ") + key);
  for (const auto& [name, entry] : it->items()) {
    if (!entry.is_object()) malformed(where, quote(name) + " is not an object");
  }
  return *it;
}

// "KIND NAME: what differs" for one pair of entries.
template <typename Entry>
void compare_maps(const std::map<std::string, Entry>& want,
                  const std::map<std::string, Entry>& found, const std::string& kind,
                  std::vector<std::string>& out) {
  for (const auto& [name, entry] : want) {
    const std::string what = kind + " " + quote(name);
    const auto it = found.find(name);
    if (it == found.end()) {
      out.push_back(what + " is missing");
    } else if (it->second.bytes != entry.bytes) {
      out.push_back(what + " has " + std::to_string(it->second.bytes) +
                    " bytes, the manifest says " + std::to_string(entry.bytes));
    } else if (it->second.checksum != entry.checksum) {
      out.push_back(what + " differs: checksum " + it->second.checksum + ", the manifest says " +
                    entry.checksum);
    }
  }
  for (const auto& [name, entry] : found) {
    if (want.count(name) == 0) out.push_back(kind + " " + quote(name) + " is not in the manifest");
  }
}

}  // namespace

Manifest compute_manifest(const Checkpoint& checkpoint, ManifestProgress progress) {
  const std::vector<MappedFile> side_files = open_side_files(checkpoint.folder());
  int64_t total = checkpoint.file_bytes();
  for (const MappedFile& file : side_files) total += file.size();

  Manifest manifest;
  Reader reader(total, progress);
  for (const MappedFile& file : side_files) {
    manifest.files[fs::path(file.path()).filename().string()] = {file.size(),
                                                                 reader.checksum(all_bytes(file))};
  }
  for (size_t i = 0; i < checkpoint.shards().size(); ++i) {
    const SafetensorsFile& shard = checkpoint.shards()[i];
    const std::string& name = checkpoint.shard_name(static_cast<int>(i));
    const size_t header_bytes = static_cast<size_t>(shard.header().header_bytes);
    manifest.files[name] = {shard.file().size(),
                            reader.checksum(all_bytes(shard.file()).first(header_bytes))};
    for (const TensorInfo& info : shard.header().tensors) {
      const std::span<const std::byte> data(shard.tensor(info).data,
                                            static_cast<size_t>(info.bytes));
      manifest.tensors[info.name] = {name, info.bytes, reader.checksum(data)};
    }
  }
  checkpoint.check_unchanged();
  return manifest;
}

void save_manifest(const std::string& folder, const Manifest& manifest) {
  OrderedJson root = {{"format", kFormat}, {"version", kVersion}, {"hash", kHash}};
  Json files = Json::object(), tensors = Json::object();
  for (const auto& [name, file] : manifest.files) {
    files[name] = {{"bytes", file.bytes}, {"checksum", file.checksum}};
  }
  for (const auto& [name, tensor] : manifest.tensors) {
    tensors[name] = {
        {"shard", tensor.shard}, {"bytes", tensor.bytes}, {"checksum", tensor.checksum}};
  }
  root["files"] = files;
  root["tensors"] = tensors;
  write_file_atomically((fs::path(folder) / kManifestName).string(), root.dump(1) + "\n");
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  const Json root = parse_json(text, where);
  if (!root.is_object()) malformed(where, "not an object");
  if (read_string(root, "format", where) != kFormat) malformed(where, "not a Tamis manifest");
  if (root.value("version", Json()) != kVersion) malformed(where, "a version other than 1");
  if (read_string(root, "hash", where) != kHash) malformed(where, "a hash other than xxh3-128");
  Manifest manifest;
  for (const auto& [name, entry] : read_object(root, "files", where).items()) {
    const std::string here = where + ": " + quote(name);
    manifest.files[name] = {read_bytes(entry, here), read_string(entry, "checksum", here)};
  }
  for (const auto& [name, entry] : read_object(root, "tensors", where).items()) {
    const std::string here = where + ": " + quote(name);
    manifest.tensors[name] = {read_string(entry, "shard", here), read_bytes(entry, here),
                              read_string(entry, "checksum", here)};
  }
  return manifest;
}

Manifest load_manifest(const std::string& folder) {
  const std::string path = (fs::path(folder) / kManifestName).string();
  return parse_manifest(read_text_file(path, kMaxManifest), path);
}

std::vector<std::string> compare_manifests(const Manifest& want, const Manifest& found) {
  std::vector<std::string> differences;
  compare_maps(want.files, found.files, "file", differences);
  compare_maps(want.tensors, found.tensors, "tensor", differences);
  for (const auto& [name, tensor] : want.tensors) {
    const auto it = found.tensors.find(name);
    if (it != found.tensors.end() && it->second.shard != tensor.shard) {
      differences.push_back("tensor " + quote(name) + " is in " + quote(it->second.shard) +
                            ", the manifest says " + quote(tensor.shard));
    }
  }
  return differences;
}

}  // namespace tamis
