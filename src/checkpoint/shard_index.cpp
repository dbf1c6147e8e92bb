#include "checkpoint/shard_index.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace tamis {
namespace {

std::string quote(std::string_view text) { return "\"" + printable(text) + "\""; }

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

void check_shard_name(const std::string& name, const std::string& tensor,
                      const std::string& where) {
  const std::string what = where + ": weight_map entry " + quote(tensor) + ": " + quote(name);
  if (name.find('\0') != std::string::npos) throw InputError(what + " holds a zero byte");
  if (name.find('/') != std::string::npos || name.find('\\') != std::string::npos) {
    throw InputError(what + " leads out of the folder; a shard is a file in the folder itself");
  }
  if (!ends_with(name, ".safetensors")) throw InputError(what + " is not a .safetensors file");
}

int64_t read_total_size(const Json& root, const std::string& where) {
  const auto metadata = root.find("metadata");
  if (metadata == root.end()) return -1;
  if (!metadata->is_object()) throw InputError(where + ": metadata is not an object");
  const auto total = metadata->find("total_size");
  if (total == metadata->end()) return -1;
  // Writers that sum in floating point leave "total_size": 123.0.
  if (total->is_number_float()) {
    const double value = total->get<double>();
    if (value >= 0 && value < 9e15 && value == std::floor(value))
      return static_cast<int64_t>(value);
  }
  const bool fits = total->is_number_unsigned() && total->get<uint64_t>() <= uint64_t{INT64_MAX};
  if (!fits) throw InputError(where + ": metadata.total_size is not a number of bytes");
  return total->get<int64_t>();
}

}  // namespace

ShardIndex parse_shard_index(std::string_view text, const std::string& where) {
  const Json root = parse_json(text, where);
  if (!root.is_object()) throw InputError(where + ": not an object");
  ShardIndex index;
  index.total_size = read_total_size(root, where);
  const auto map = root.find("weight_map");
  if (map == root.end() || !map->is_object()) {
    throw InputError(where + ": no object weight_map");
  }
  if (map->empty()) throw InputError(where + ": weight_map is empty");
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      throw InputError(where + ": weight_map entry " + quote(tensor) + " is not a string");
    }
    const std::string& name = shard.get_ref<const std::string&>();
    check_shard_name(name, tensor, where);
    index.weight_map.emplace_back(tensor, name);
    index.shards.insert(name);
  }
  return index;
}

}  // namespace tamis
