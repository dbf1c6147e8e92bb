// Strict JSON: what a checkpoint or a client sends is read with these limits, once, here.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>  // forward declarations only; the full header stays in .cpp files
#include <string>
#include <string_view>

namespace tamis {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // keeps the order of an object's keys

struct JsonLimits {
  int max_depth = 128;
  bool allow_duplicate_keys = false;
  // Integers past 64 bits become a binary value of their digits instead of a rounded double.
  bool long_integers_as_binary = false;
  // Of one object. An OrderedJson searches its keys one by one, so hostile input needs a bound.
  int64_t max_object_keys = INT64_MAX;
};

// Parses the whole text. InputError "WHERE: ..." on a syntax error, invalid UTF-8, a duplicate key
// or nesting past max_depth; never recurses with the input.
Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits = {});
OrderedJson parse_ordered_json(std::string_view text, const std::string& where,
                               const JsonLimits& limits = {});

// The contents of a file; InputError if it cannot be read or is longer than max_bytes.
std::string read_text_file(const std::string& path, int64_t max_bytes);

}  // namespace tamis
