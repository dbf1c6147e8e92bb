#include "text/completion.h"

#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"
#include "text/chat_markers.h"
#include "text/output_parser.h"
#include "text/python_json.h"

namespace tamis {
namespace {

constexpr std::string_view kCallsStart = "\n\n<｜DSML｜function_calls";
constexpr std::string_view kCallsEnd = "</｜DSML｜function_calls>";
constexpr std::string_view kInvoke = "<｜DSML｜invoke";
constexpr std::string_view kInvokeEnd = "</｜DSML｜invoke";
constexpr std::string_view kParameter = "<｜DSML｜parameter";
constexpr std::string_view kParameterEnd = "/｜DSML｜parameter";

[[noreturn]] void refuse(const std::string& what) { throw InputError("completion: " + what); }

void need(bool condition, const char* otherwise) {
  if (!condition) refuse(otherwise);
}

// Walks through the text from marker to marker. Where each marker stands next is remembered, so
// that the whole walk is linear.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  // Text up to the nearest of the stops, which is passed and left in stop(), or to the end.
  template <typename... Stops>
  std::string_view until(Stops... stops) {
    size_t nearest = text_.size();
    stop_ = {};
    for (const std::string_view stop : {std::string_view(stops)...}) {
      const size_t position = next(stop);
      if (position < nearest) {
        nearest = position;
        stop_ = stop;
      }
    }
    const std::string_view content = text_.substr(at_, nearest - at_);
    at_ = nearest + stop_.size();
    return content;
  }

  std::string_view stop() const { return stop_; }
  bool done() const { return at_ == text_.size(); }

 private:
  size_t next(std::string_view stop) {
    Known* known = nullptr;
    for (Known& entry : known_) {
      if (entry.stop == stop) known = &entry;
    }
    if (known == nullptr) known = &known_.emplace_back(Known{stop, text_.find(stop, at_)});
    if (known->position != std::string_view::npos && known->position < at_) {
      known->position = text_.find(stop, at_);
    }
    return known->position;
  }

  struct Known {
    std::string_view stop;
    size_t position;
  };
  std::string_view text_;
  std::string_view stop_;
  size_t at_ = 0;
  std::vector<Known> known_;
};

bool take_front(std::string_view& text, std::string_view part) {
  if (text.substr(0, part.size()) != part) return false;
  text.remove_prefix(part.size());
  return true;
}

bool take_back(std::string_view& text, std::string_view part) {
  if (text.size() < part.size() || text.substr(text.size() - part.size()) != part) return false;
  text.remove_suffix(part.size());
  return true;
}

// name="NAME"> on a line of its own.
std::string_view read_name(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n\f\v"), text.size()));
  need(take_front(text, "name=\""), "the name of a call is malformed");
  need(take_back(text, "\">\n\n") || take_back(text, "\">\n"), "the name of a call is malformed");
  return text;
}

struct Parameter {
  std::string_view key;
  std::string_view value;
  bool is_text;
};

//  name="KEY" string="true">VALUE<
Parameter read_parameter(std::string_view text) {
  constexpr std::string_view kAttribute = "\" string=\"";
  need(take_front(text, " name=\"") && (take_back(text, "<\n") || take_back(text, "<")),
       "a parameter is malformed");
  for (size_t at = text.find(kAttribute); at != std::string_view::npos;
       at = text.find(kAttribute, at + 1)) {
    std::string_view rest = text.substr(at + kAttribute.size());
    const bool is_text = take_front(rest, "true\">");
    if (is_text || take_front(rest, "false\">")) return {text.substr(0, at), rest, is_text};
  }
  refuse("a parameter is malformed");
}

ToolCall read_call(Reader& reader) {
  ToolCall call;
  call.name = read_name(reader.until(kParameter, kInvokeEnd));
  std::set<std::string_view> keys;
  call.arguments = "{";
  while (reader.stop() == kParameter) {
    const Parameter parameter = read_parameter(reader.until(kParameterEnd));
    need(keys.insert(parameter.key).second, "a parameter is repeated");
    call.arguments += keys.size() > 1 ? ", \"" : "\"";
    append_json_escaped(call.arguments, parameter.key);
    call.arguments += parameter.is_text ? "\": \"" : "\": ";
    if (parameter.is_text) {
      append_json_escaped(call.arguments, parameter.value);
      call.arguments += '"';
    } else {
      call.arguments += parameter.value;
    }
    need(reader.until(kParameter, kInvokeEnd) == ">\n", "text between parameters");
  }
  call.arguments += "}";
  return call;
}

std::vector<ToolCall> read_calls(Reader& reader) {
  std::vector<ToolCall> calls;
  while (!reader.done()) {
    need(reader.until(kInvoke, kCallsEnd) == ">\n", "text between calls");
    if (reader.stop() == kCallsEnd) break;
    need(!reader.stop().empty(), "a call has no end");
    calls.push_back(read_call(reader));
  }
  return calls;
}

void need_plain(std::string_view text) {
  for (const std::string_view marker :
       {chat::kBos, chat::kEos, chat::kThinkStart, chat::kThinkEnd, chat::kDsml}) {
    if (text.find(marker) != std::string_view::npos) {
      refuse("a special token stands in the text: " + std::string(marker));
    }
  }
}

Completion parse_v32(bool thinking, std::string_view text) {
  Reader reader(text);
  Completion completion;
  if (thinking) {
    completion.reasoning_content = reader.until(chat::kThinkEnd, kCallsStart);
    need(reader.stop() == chat::kThinkEnd, "the thought has no end");
  }
  completion.content = reader.until(chat::kEos, kCallsStart);
  if (reader.stop() == kCallsStart) {
    completion.tool_calls = read_calls(reader);
    need(reader.until(chat::kEos).empty(), "text after the tool calls");
  } else {
    need(reader.stop() == chat::kEos, "the answer has no end");
  }
  need(reader.done(), "text after the end");
  need_plain(completion.content);
  need_plain(completion.reasoning_content);
  return completion;
}

Completion parse_v31(ChatFormat format, bool thinking, std::string_view text) {
  take_back(text, chat::kEos);
  std::vector<OutputEvent> events;
  OutputParser parser({format, thinking, /*tools=*/format != ChatFormat::kV31Plain});
  parser.push(text, events);
  need(!thinking || text.find(chat::kThinkEnd) != std::string_view::npos, "the thought has no end");
  parser.finish(events);
  Completion completion;
  for (const OutputEvent& event : events) {
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        completion.reasoning_content += event.text;
        break;
      case OutputEvent::Kind::kContent:
        completion.content += event.text;
        break;
      case OutputEvent::Kind::kToolStart:
        completion.tool_calls.push_back({"", event.text, ""});
        break;
      case OutputEvent::Kind::kToolArguments:
        completion.tool_calls.back().arguments += event.text;
        break;
      case OutputEvent::Kind::kToolEnd:
        break;
      case OutputEvent::Kind::kToolBroken:
        refuse(event.text);
      case OutputEvent::Kind::kMalformed:
        refuse("text between tool calls: " + printable(event.text));
    }
  }
  need_plain(completion.content);
  return completion;
}

}  // namespace

Completion parse_completion(ChatFormat format, bool thinking, std::string_view text) {
  return format == ChatFormat::kV32 ? parse_v32(thinking, text) : parse_v31(format, thinking, text);
}

}  // namespace tamis
