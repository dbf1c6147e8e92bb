// model.safetensors.index.json: which shard holds which tensor.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tamis {

struct ShardIndex {
  std::vector<std::pair<std::string, std::string>> weight_map;  // tensor, shard
  std::set<std::string> shards;
  int64_t total_size = -1;  // bytes of all tensors; -1: not given
};

// Checks the form alone; whether the shards agree is Checkpoint's to see. Every shard is the name
// of a file in the folder itself: InputError "WHERE: ..." for a name that could lead anywhere else.
ShardIndex parse_shard_index(std::string_view text, const std::string& where);

}  // namespace tamis
