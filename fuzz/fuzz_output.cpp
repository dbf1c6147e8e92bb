// What a model writes, from anywhere, as it is streamed: thoughts, answers and tool calls of every
// chat format. The first byte chooses the format and the options. How the text is cut changes
// nothing; calls begin and end in order; text without markup comes out as it went in; arguments
// that V3.2's parser puts together are JSON.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "text/completion.h"
#include "text/output_parser.h"
#include "text/python_json.h"

namespace {

using tamis::ChatFormat;
using tamis::OutputEvent;
using tamis::OutputParser;
using tamis::OutputParserOptions;
using Events = std::vector<OutputEvent>;
using Kind = OutputEvent::Kind;

constexpr ChatFormat kFormats[] = {ChatFormat::kV31, ChatFormat::kV31Plain, ChatFormat::kV32Exp,
                                   ChatFormat::kV32};

void require(bool holds) {
  if (!holds) std::abort();
}

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// In pieces of sizes that the text chooses, or in one.
Events parse(const OutputParserOptions& options, std::string_view text, bool limit, bool pieces) {
  Events events;
  OutputParser parser(options);
  while (!text.empty()) {
    const size_t step = pieces ? 1 + static_cast<uint8_t>(text[0]) % 11 : text.size();
    parser.push(text.substr(0, step), events);
    text.remove_prefix(std::min(step, text.size()));
  }
  parser.finish(events, limit);
  return events;
}

// Arguments are text of a call that is open, and every call ends. Returns those of complete calls.
std::vector<std::string> arguments_of(const Events& events) {
  std::vector<std::string> complete;
  bool open = false;
  std::string arguments;
  for (const OutputEvent& event : events) {
    if (event.kind == Kind::kToolStart) {
      require(!open);
      open = true;
      arguments.clear();
    } else if (event.kind == Kind::kToolEnd || event.kind == Kind::kToolBroken) {
      require(open);
      open = false;
      if (event.kind == Kind::kToolEnd) complete.push_back(arguments);
    } else {
      require(open == (event.kind == Kind::kToolArguments));
      if (open) arguments += event.text;
    }
  }
  require(!open);
  return complete;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const uint8_t choice = data[0];
  const OutputParserOptions options{kFormats[choice & 3], (choice & 4) != 0, (choice & 16) == 0};
  const bool limit = (choice & 32) != 0;
  const Events whole = parse(options, text, limit, false);
  require(whole == parse(options, text, limit, true));
  const auto calls = arguments_of(whole);
  require(options.tools || calls.empty());
  if (options.format == ChatFormat::kV32 && !has(text, "string=\"false\"") &&
      tamis::utf8_first_invalid(text) == std::string_view::npos) {
    for (const std::string& arguments : calls) tamis::parse_python_json(arguments, "arguments");
  }
  std::string emitted;
  for (const OutputEvent& event : whole) emitted += event.text;
  const bool markup = options.tools && has(text, "｜");
  if (!markup && !has(text, "think>") && !limit) require(emitted == text);
  try {
    tamis::parse_completion(options.format, options.in_thinking, text);
  } catch (const tamis::InputError&) {
  }
  return 0;
}
