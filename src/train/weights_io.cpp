#include "train/weights_io.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "train/random.h"

namespace tamis {
namespace {

void load_one(const Checkpoint& checkpoint, const Parameter& p, float* to) {
  const Tensor t = checkpoint.tensor(p.name);
  if (!(t.shape == p.shape)) {
    throw InputError(p.name + ": got " + t.shape.to_string() + ", want " + p.shape.to_string());
  }
  if (t.dtype != DType::kF32 && t.dtype != DType::kF16 && t.dtype != DType::kBF16) {
    throw InputError(p.name + ": got " + std::string(dtype_name(t.dtype)) +
                     ", want F32, F16 or BF16; convert the checkpoint with --to bf16 first");
  }
  for (int64_t i = 0; i < p.size(); ++i) to[i] = tensor_element(t, i);
}

// The bits of the name alone, whatever the platform.
uint64_t name_key(const std::string& name) {
  uint64_t key = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : name) key = (key ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  return key;
}

void draw_one(const Parameter& p, uint64_t seed, double deviation, float* to) {
  if (p.start != ParameterStart::kNormal) {
    std::fill_n(to, p.size(), p.start == ParameterStart::kOne ? 1.0F : 0.0F);
    return;
  }
  Random random(seed, name_key(p.name));
  for (int64_t i = 0; i < p.size(); ++i) {
    const double radius = std::sqrt(-2 * std::log(1 - random.unit()));  // Box and Muller
    const double angle = 2 * std::numbers::pi * random.unit();
    to[i] = static_cast<float>(deviation * radius * std::cos(angle));
  }
}

}  // namespace

int64_t load_values(const Checkpoint& checkpoint, const ParameterTable& table, float* values) {
  int64_t missing = 0;
  std::string first_missing;
  int64_t indexer = 0;
  for (const Parameter& p : table.list()) {
    const bool of_indexer = p.group == ParameterGroup::kIndexer;
    indexer += of_indexer ? 1 : 0;
    if (of_indexer && !checkpoint.contains(p.name)) {
      if (missing++ == 0) first_missing = p.name;
      continue;
    }
    load_one(checkpoint, p, values + p.offset);
  }
  if (missing != 0 && missing != indexer) {
    throw InputError(checkpoint.folder() + ": " + first_missing +
                     " is missing, but other tensors of the indexer are there");
  }
  return missing;
}

void draw_values(const ParameterTable& table, uint64_t seed, double deviation, float* values) {
  for (const Parameter& p : table.list()) draw_one(p, seed, deviation, values + p.offset);
}

void draw_values(const ParameterTable& table, ParameterGroup group, uint64_t seed, double deviation,
                 float* values) {
  for (const Parameter& p : table.list()) {
    if (p.group == group) draw_one(p, seed, deviation, values + p.offset);
  }
}

}  // namespace tamis
