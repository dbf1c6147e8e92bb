// The streaming half of tokenizer.json: model.vocab and model.merges, nearly all of the file, go
// straight into tables; the small rest becomes a Json value.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_vocab.h"

namespace tamis {

// The merges as pairs of keys, all in one string.
struct MergeKeys {
  struct Entry {
    uint32_t begin, left_size, right_size;
  };
  std::string text;
  std::vector<Entry> entries;

  std::string_view left(const Entry& e) const {
    return std::string_view(text).substr(e.begin, e.left_size);
  }
  std::string_view right(const Entry& e) const {
    return std::string_view(text).substr(e.begin + e.left_size, e.right_size);
  }
  std::string_view joined(const Entry& e) const {
    return std::string_view(text).substr(e.begin, size_t{e.left_size} + e.right_size);
  }
};

struct TokenizerTables {
  KeyTable vocab;
  MergeKeys merges;
  bool has_vocab = false, has_merges = false;
};

// Fills tables and rest (where model.vocab and model.merges, if they were read, are null). An id of
// the vocabulary lies in [0, json.size()): a token takes more than one byte of the file, so a
// larger one is a hole that would only cost memory. InputError "WHERE: ..." otherwise.
void parse_tokenizer_json(std::string_view json, const std::string& where, TokenizerTables& tables,
                          nlohmann::json& rest);

}  // namespace tamis
