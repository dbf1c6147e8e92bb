#include "train/train_checkpoint.h"

#include <algorithm>
#include <array>
#include <cstdlib>
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

// A TrainingState, const or not.
template <typename State>
auto arrays(State& state) {
  struct Array {
    const char* name;
    decltype(&state.weights) values;
  };
  return std::array<Array, 3>{{{"weights", &state.weights},
                               {"first_moments", &state.first},
                               {"second_moments", &state.second}}};
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

Json position_json(const TrainingState& s) {
  const RunPosition& p = s.position;
  return {{"step", p.step},
          {"stage", p.stage},
          {"stage_step", p.stage_step},
          {"indexer_trained", p.indexer_trained},
          {"norm_mean", p.norm_mean},
          {"norm_steps", p.norm_steps},
          {"recipe", p.recipe},
          {"data", p.data},
          {"clock_model", s.clock_model},
          {"clock_indexer", s.clock_indexer}};
}

void read_position(const std::string& text, const std::string& path, TrainingState& s) {
  const Json json = parse_json(text, path);
  try {
    RunPosition& p = s.position;
    p.step = json.at("step").get<int64_t>();
    p.stage = json.at("stage").get<int64_t>();
    p.stage_step = json.at("stage_step").get<int64_t>();
    p.indexer_trained = json.at("indexer_trained").get<bool>();
    for (size_t g = 0; g < 2; ++g) {
      p.norm_mean[g] = json.at("norm_mean").at(g).get<double>();
      p.norm_steps[g] = json.at("norm_steps").at(g).get<int64_t>();
    }
    p.recipe = json.at("recipe").get<std::string>();
    p.data = json.at("data").get<std::string>();
    s.clock_model = json.at("clock_model").get<int64_t>();
    s.clock_indexer = json.at("clock_indexer").get<int64_t>();
  } catch (const Json::exception&) {
    throw InputError(path + ": not a training checkpoint of this version");
  }
}

// Of a name step-N[-end].safetensors.
int64_t step_of(const fs::path& path) {
  return std::strtoll(path.stem().string().c_str() + kPrefix.size(), nullptr, 10);
}

}  // namespace

void save_checkpoint(const std::string& folder, const TrainingState& state,
                     const ParameterTable& table) {
  fs::create_directories(folder);
  std::string number = std::to_string(state.position.step);
  number.insert(0, 8 - std::min<size_t>(8, number.size()), '0');
  const std::string path = folder + "/" + std::string(kPrefix) + number +
                           std::string(state.position.stage_end ? kStageEnd : "") +
                           std::string(kSuffix);
  std::map<std::string, std::string> metadata = {{"position", position_json(state).dump()},
                                                 {"layout", layout_of(table)}};
  std::vector<TensorSpec> specs;
  const auto list = arrays(state);
  for (const auto& a : list) {
    specs.push_back({a.name, DType::kF32, {table.size()}});
    metadata[std::string("checksum.") + a.name] = sum_of(*a.values);
  }
  SafetensorsWriter writer(path, specs, metadata, AtomicFile::TemporaryName::kFixed);
  for (const auto& a : list) writer.append_tensor(a.name, std::as_bytes(std::span(*a.values)));
  writer.commit();
}

std::optional<std::string> newest_checkpoint(const std::string& folder) {
  const std::vector<fs::path> found = checkpoints(folder);
  if (found.empty()) return std::nullopt;
  return found.front().string();
}

std::vector<std::string> stage_end_checkpoints(const std::string& folder) {
  std::vector<std::string> found;
  for (const fs::path& path : checkpoints(folder)) {
    if (path.stem().string().ends_with(kStageEnd)) found.push_back(path.string());
  }
  return found;
}

TrainingState load_checkpoint(const std::string& path, const ParameterTable& table) {
  TrainingState state;
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
  for (const auto& a : arrays(state)) {
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
  read_position(meta("position"), path, state);
  return state;
}

void remove_old_checkpoints(const std::string& folder, const CheckpointRetention& keep) {
  int64_t left = keep.last;
  for (const fs::path& path : checkpoints(folder)) {
    if (path.stem().string().ends_with(kStageEnd)) continue;
    if (left-- > 0 || (keep.every > 0 && step_of(path) % keep.every == 0)) continue;
    fs::remove(path);
  }
}

CheckpointWriter::CheckpointWriter(std::string folder, const ParameterTable& table,
                                   CheckpointRetention keep)
    : folder_(std::move(folder)), table_(table), keep_(keep) {}

CheckpointWriter::~CheckpointWriter() {
  if (writing_.valid()) writing_.wait();
}

void CheckpointWriter::wait() {
  if (writing_.valid()) writing_.get();
}

void CheckpointWriter::start(TrainingState state) {
  wait();
  writing_ = std::async(std::launch::async, [this, state = std::move(state)] {
    save_checkpoint(folder_, state, table_);
    remove_old_checkpoints(folder_, keep_);
  });
}

}  // namespace tamis
