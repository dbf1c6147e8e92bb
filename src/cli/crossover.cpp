#include "cli/crossover.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace tamis::cli {
namespace {

constexpr int64_t kMostBytes = 1 << 20;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Json read(const std::string& file) {
  if (file.empty() || !std::filesystem::exists(file)) return Json::object();
  Json all = parse_json(read_text_file(file, kMostBytes), file);
  if (!all.is_object()) throw InputError(file + ": want an object; delete the file");
  return all;
}

}  // namespace

std::string crossover_file() {
  std::string folder = variable("TAMIS_CACHE");
  if (folder.empty()) {
    folder = variable("XDG_CACHE_HOME");
    if (folder.empty() && !variable("HOME").empty()) folder = variable("HOME") + "/.cache";
    if (!folder.empty()) folder += "/tamis";
  }
  return folder.empty() ? "" : folder + "/crossover.json";
}

std::string crossover_key(const std::string& gpu, const ModelConfig& c) {
  return fmt::format("{}: {} heads, {} + {}, {}, latent {}, top-k {}", gpu, c.num_heads, c.nope,
                     c.rope, c.v_head, c.kv_lora, c.index_topk);
}

std::optional<int64_t> stored_crossover(const std::string& file, const std::string& key) {
  const Json all = read(file);
  const auto it = all.find(key);
  if (it == all.end()) return std::nullopt;
  if (!it->is_number_unsigned() || it->get<uint64_t>() > (uint64_t{1} << 40)) {
    throw InputError(file + ": '" + key + "': want a position; delete the file");
  }
  return it->get<int64_t>();
}

void store_crossover(const std::string& file, const std::string& key, int64_t position) {
  Json all = read(file);
  all[key] = static_cast<uint64_t>(position);
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path(file).parent_path(), failed);
  if (failed) throw DeviceError(file + ": its folder cannot be made: " + failed.message());
  write_file_atomically(file, all.dump(2) + "\n");
}

}  // namespace tamis::cli
