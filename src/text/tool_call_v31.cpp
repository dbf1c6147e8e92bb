#include <algorithm>
#include <array>

#include "text/chat_markers.h"
#include "text/tool_call_parser.h"

namespace tamis {
namespace {

using Kind = OutputEvent::Kind;

constexpr std::array kMarkers = {chat::kToolCallsBegin, chat::kToolCallsEnd, chat::kToolCallBegin,
                                 chat::kToolCallEnd, chat::kToolSep};
enum Marker : size_t { kCallsBegin, kCallsEnd, kCallBegin, kCallEnd, kSep };

constexpr size_t kMaxNameBytes = 256;  // OpenAI allows 64

}  // namespace

V31ToolCalls::V31ToolCalls() { scanner_.watch(kMarkers); }

void V31ToolCalls::push(std::string_view text, std::vector<OutputEvent>& events) {
  scanner_.push(
      text, [&](std::string_view run) { return on_text(run, events); },
      [&](size_t marker) { on_marker(marker, events); });
}

void V31ToolCalls::finish(std::vector<OutputEvent>& events, bool cut) {
  const bool in_text = state_ == State::kContent || state_ == State::kArguments;
  if (cut && (!in_text || is_begun_markup(scanner_.held()))) scanner_.drop_held();
  if (cut) name_.clear();
  scanner_.finish([&](std::string_view run) { return on_text(run, events); });
  leave_call(events, /*complete=*/false);
  state_ = State::kContent;
}

size_t V31ToolCalls::on_text(std::string_view text, std::vector<OutputEvent>& events) {
  switch (state_) {
    case State::kContent:
      append_event(events, Kind::kContent, text);
      return text.size();
    case State::kBetween: {
      const size_t blank = text.find_first_not_of(" \t\r\n");
      if (blank == std::string_view::npos) return text.size();
      state_ = State::kSkip;
      return blank;
    }
    case State::kName:
      return on_name(text, events);
    case State::kArguments:
      append_event(events, Kind::kToolArguments, text);
      return text.size();
    case State::kSkip:
      append_event(events, Kind::kMalformed, text);
      return text.size();
  }
  return text.size();
}

size_t V31ToolCalls::on_name(std::string_view text, std::vector<OutputEvent>& events) {
  const size_t taken = std::min(text.size(), kMaxNameBytes - name_.size());
  name_ += text.substr(0, taken);
  if (taken < text.size()) {
    leave_call(events, /*complete=*/false);
    state_ = State::kSkip;
  }
  return taken;
}

// Ends what was open: a name alone was no call yet, so its text is malformed.
void V31ToolCalls::leave_call(std::vector<OutputEvent>& events, bool complete) {
  if (state_ == State::kName) append_event(events, Kind::kMalformed, name_);
  if (state_ == State::kArguments) {
    append_event(events, complete ? Kind::kToolEnd : Kind::kToolBroken,
                 complete ? "" : "the call was cut short");
  }
  name_.clear();
}

void V31ToolCalls::on_marker(size_t marker, std::vector<OutputEvent>& events) {
  if (state_ == State::kContent) {
    if (marker == kCallsBegin) {
      state_ = State::kBetween;
    } else {
      append_event(events, Kind::kContent, kMarkers[marker]);
    }
    return;
  }
  if (marker == kSep && state_ == State::kName && !name_.empty()) {
    append_event(events, Kind::kToolStart, name_);
    name_.clear();
    state_ = State::kArguments;
    return;
  }
  leave_call(events, marker == kCallEnd);
  switch (marker) {
    case kCallBegin:
      state_ = State::kName;
      return;
    case kCallsEnd:
      state_ = State::kContent;
      return;
    case kCallEnd:
      state_ = State::kBetween;
      return;
    default:
      append_event(events, Kind::kMalformed, kMarkers[marker]);
      state_ = State::kSkip;
  }
}

}  // namespace tamis
