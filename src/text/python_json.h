// JSON as Python writes it. The prompts of V3.2 hold the output of json.dumps(ensure_ascii=False),
// so its separators, escapes and numbers are part of the format.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace tamis {

// Strict JSON with two liberties of Python: integers of any length keep their digits (as a binary
// value, which only python_json_dump understands), and arguments written by a model may repeat a
// key (the last value wins, at the first one's place). An object has at most 1024 keys.
OrderedJson parse_python_json(std::string_view text, const std::string& where,
                              bool allow_duplicate_keys = false);

// ", " and ": " between things, keys in their order, floats as Python's repr, text unescaped but
// for the quote, the backslash and control characters.
std::string python_json_dump(const OrderedJson& value);

// The text as a JSON string without its quotes.
void append_json_escaped(std::string& out, std::string_view text);

}  // namespace tamis
