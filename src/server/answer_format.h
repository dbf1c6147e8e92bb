// What an answer must look like: response_format and tool_choice, and the names that other servers
// have for the same (structured_outputs, guided_json, json_schema, regex, ...).
//
//   read_answer_format(f, call);                  // JSON, schema, expression
//   const ToolChoice choice = read_tool_choice(f);
//   apply_tool_choice(choice, chat, call);        // once the messages and the tools are known
//
// This only reads; constraint_cache.h compiles. ApiError 400 naming the field.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/json_fields.h"

namespace tamis::server {

// Sets call.answer and call.answer_field.
void read_answer_format(Fields& f, Call& call);
// From the member `key` alone: {"type": "text", "json_object", "json_schema" or "regex", ...}.
void read_text_format(Fields& f, const char* key, Call& call);

struct ToolChoice {
  enum class Mode : uint8_t { kAuto, kNone, kRequired };
  Mode mode = Mode::kAuto;
  std::vector<std::string> names;  // the only ones that may be called; empty: all
};
ToolChoice read_tool_choice(Fields& f);

// Declares in call.answer what may be called. Without a choice of the client's, the tools are free
// to be called or not, but what is called is declared, and well formed.
void apply_tool_choice(const ToolChoice& choice, const ChatPrompt& chat, Call& call);

}  // namespace tamis::server
