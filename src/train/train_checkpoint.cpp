#include "train/train_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checksum.h"
#include "checkpoint/safetensors.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-", kSuffix = ".safetensors", kStageEnd = "-end";

// Names and shapes of every tensor: values in one layout make no sense in another.
std::string layout_of(const ParameterTable& table) {
  std::string text;
  for (const Parameter& p : table.list()) text += p.name + p.shape.to_string() + "\n";
  return checksum_hex(std::as_bytes(std::span(text)));
}

struct Array {
  const char* name;
  std::vector<float>* values;
};

std::vector<Array> arrays(std::vector<float>& weights, Optimizer& optimizer) {
  return {{"weights", &weights},
          {"first_moments", &optimizer.first()},
          {"second_moments", &optimizer.second()}};
}

std::string sum_of(const std::vector<float>& values) {
  return checksum_hex(std::as_bytes(std::span(values)));
}

// Files step-N[-end].safetensors, newest first.
std::vector<fs::path> checkpoints(const std::string& folder) {
  std::vector<fs::path> found;
  std::error_code absent;
  for (const fs::directory_entry& e : fs::directory_iterator(folder, absent)) {
    const std::string name = e.path().filename();
    if (name.starts_with(kPrefix) && name.ends_with(kSuffix)) found.push_back(e.path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

Json position_json(const RunPosition& p, Optimizer& optimizer) {
  return {{"step", p.step},
          {"stage", p.stage},
          {"stage_step", p.stage_step},
          {"indexer_trained", p.indexer_trained},
          {"recipe", p.recipe},
          {"data", p.data},
          {"clock_model", optimizer.clock(ParameterGroup::kModel)},
          {"clock_indexer", optimizer.clock(ParameterGroup::kIndexer)}};
}

RunPosition read_position(const std::string& text, const std::string& path, Optimizer& optimizer) {
  const Json json = parse_json(text, path);
  try {
    RunPosition p;
    p.step = json.at("step").get<int64_t>();
    p.stage = json.at("stage").get<int64_t>();
    p.stage_step = json.at("stage_step").get<int64_t>();
    p.indexer_trained = json.at("indexer_trained").get<bool>();
    p.recipe = json.at("recipe").get<std::string>();
    p.data = json.at("data").get<std::string>();
    optimizer.clock(ParameterGroup::kModel) = json.at("clock_model").get<int64_t>();
    optimizer.clock(ParameterGroup::kIndexer) = json.at("clock_indexer").get<int64_t>();
    return p;
  } catch (const Json::exception&) {
    throw InputError(path + ": not a training checkpoint of this version");
  }
}

}  // namespace

void save_checkpoint(const std::string& folder, const RunPosition& position,
                     const ParameterTable& table, const std::vector<float>& weights,
                     Optimizer& optimizer) {
  fs::create_directories(folder);
  std::string number = std::to_string(position.step);
  number.insert(0, 8 - std::min<size_t>(8, number.size()), '0');
  const std::string path = folder + "/" + std::string(kPrefix) + number +
                           std::string(position.stage_end ? kStageEnd : "") + std::string(kSuffix);
  std::map<std::string, std::string> metadata = {
      {"position", position_json(position, optimizer).dump()}, {"layout", layout_of(table)}};
  std::vector<TensorSpec> specs;
  // Only read here; the list is shared with loading.
  const std::vector<Array> list = arrays(const_cast<std::vector<float>&>(weights), optimizer);
  for (const Array& a : list) {
    specs.push_back({a.name, DType::kF32, {table.size()}});
    metadata[std::string("checksum.") + a.name] = sum_of(*a.values);
  }
  SafetensorsWriter writer(path, specs, metadata, AtomicFile::TemporaryName::kFixed);
  for (const Array& a : list) writer.append_tensor(a.name, std::as_bytes(std::span(*a.values)));
  writer.commit();
}

std::optional<std::string> newest_checkpoint(const std::string& folder) {
  const std::vector<fs::path> found = checkpoints(folder);
  if (found.empty()) return std::nullopt;
  return found.front().string();
}

RunPosition load_checkpoint(const std::string& path, const ParameterTable& table,
                            std::vector<float>& weights, Optimizer& optimizer) {
  const SafetensorsFile file(path);
  const std::map<std::string, std::string>& metadata = file.header().metadata;
  const auto meta = [&](const std::string& key) {
    const auto it = metadata.find(key);
    if (it == metadata.end()) throw InputError(path + ": no " + key + " in its metadata");
    return it->second;
  };
  if (meta("layout") != layout_of(table)) {
    throw InputError(path + ": of a model with other tensors than the recipe's");
  }
  for (const Array& a : arrays(weights, optimizer)) {
    const TensorInfo* info = file.find(a.name);
    if (info == nullptr || info->dtype != DType::kF32 || !(info->shape == Shape{table.size()})) {
      throw InputError(path + ": " + a.name + " is missing or of another shape");
    }
    a.values->resize(static_cast<size_t>(table.size()));
    std::memcpy(a.values->data(), file.tensor(*info).data, static_cast<size_t>(info->bytes));
    if (sum_of(*a.values) != meta(std::string("checksum.") + a.name)) {
      throw InputError(path + ": " + a.name +
                       ": damaged (checksum); remove the file to go on from the one before");
    }
  }
  return read_position(meta("position"), path, optimizer);
}

void remove_old_checkpoints(const std::string& folder, int64_t keep) {
  for (const fs::path& path : checkpoints(folder)) {
    if (path.stem().string().ends_with(kStageEnd) || keep-- > 0) continue;
    fs::remove(path);
  }
}

}  // namespace tamis
