#include "text/output_parser.h"

#include <array>

#include "text/chat_markers.h"

namespace tamis {
namespace {

using Kind = OutputEvent::Kind;

constexpr std::array kThinkMarkers = {chat::kThinkEnd, chat::kThinkStart};
enum ThinkMarker : size_t { kEnd, kStart };

bool is_text(Kind kind) {
  return kind == Kind::kReasoning || kind == Kind::kContent || kind == Kind::kToolArguments ||
         kind == Kind::kMalformed;
}

std::variant<V31ToolCalls, DsmlToolCalls> calls_of(ChatFormat format) {
  if (format == ChatFormat::kV32) return DsmlToolCalls();
  return V31ToolCalls();
}

}  // namespace

void append_event(std::vector<OutputEvent>& events, Kind kind, std::string_view text) {
  if (is_text(kind)) {
    if (text.empty()) return;
    if (!events.empty() && events.back().kind == kind) {
      events.back().text += text;
      return;
    }
  }
  events.push_back({kind, std::string(text)});
}

bool is_begun_markup(std::string_view held) {
  const size_t at = held.find_first_not_of('\n');
  if (at == std::string_view::npos) return false;
  held.remove_prefix(at);
  return held.starts_with("<｜") || held.starts_with("</｜");
}

ReasoningParser::ReasoningParser(bool in_thinking) : in_thinking_(in_thinking) {
  scanner_.watch(kThinkMarkers);
}

void ReasoningParser::push(std::string_view text, std::vector<OutputEvent>& events,
                           std::string& answer) {
  // After the thought nothing is scanned: push() is called once more with what follows it.
  size_t used = 0;
  while (in_thinking_ && used < text.size()) {
    scanner_.push(
        text.substr(used, 1),
        [&](std::string_view run) {
          append_event(events, Kind::kReasoning, run);
          at_start_ = false;
          return run.size();
        },
        [&](size_t marker) {
          if (marker == kEnd) {
            in_thinking_ = false;
          } else if (!at_start_) {
            append_event(events, Kind::kReasoning, chat::kThinkStart);
          }
          at_start_ = false;
        });
    ++used;
  }
  answer += text.substr(used);
}

void ReasoningParser::finish(std::vector<OutputEvent>& events) {
  scanner_.finish([&](std::string_view run) {
    append_event(events, Kind::kReasoning, run);
    return run.size();
  });
}

ToolCallParser::ToolCallParser(ChatFormat format) : calls_(calls_of(format)) {}

void ToolCallParser::push(std::string_view text, std::vector<OutputEvent>& events) {
  std::visit([&](auto& calls) { calls.push(text, events); }, calls_);
}

void ToolCallParser::finish(std::vector<OutputEvent>& events, bool cut) {
  std::visit([&](auto& calls) { calls.finish(events, cut); }, calls_);
}

OutputParser::OutputParser(const OutputParserOptions& options)
    : reasoning_(options.in_thinking), tools_(options.format), parse_tools_(options.tools) {}

void OutputParser::push(std::string_view text, std::vector<OutputEvent>& events) {
  std::string answer;
  reasoning_.push(text, events, answer);
  if (parse_tools_) {
    tools_.push(answer, events);
  } else {
    append_event(events, Kind::kContent, answer);
  }
}

void OutputParser::finish(std::vector<OutputEvent>& events, bool cut) {
  reasoning_.finish(events);
  if (parse_tools_) tools_.finish(events, cut);
}

}  // namespace tamis
