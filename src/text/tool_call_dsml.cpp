#include <algorithm>
#include <array>

#include "text/chat_markers.h"
#include "text/python_json.h"
#include "text/tool_call_parser.h"

namespace tamis {
namespace {

using Kind = OutputEvent::Kind;

constexpr std::string_view kInvoke = "<｜DSML｜invoke name=\"";
constexpr std::string_view kInvokeEnd = "</｜DSML｜invoke>";
constexpr std::string_view kCallsEnd = "</｜DSML｜function_calls>";
constexpr std::string_view kParameter = "<｜DSML｜parameter name=\"";

// The empty lines before the block belong to the markup.
constexpr std::array<std::string_view, 2> kContentMarkers = {"\n\n<｜DSML｜function_calls>",
                                                             "<｜DSML｜function_calls>"};
constexpr std::array kBlockMarkers = {kInvoke, kCallsEnd};
constexpr std::array<std::string_view, 1> kNameMarkers = {"\">"};
constexpr std::array kParameterMarkers = {kInvoke, kCallsEnd, kInvokeEnd, kParameter};
constexpr std::array<std::string_view, 2> kKeyMarkers = {"\" string=\"true\">",
                                                         "\" string=\"false\">"};
constexpr std::array<std::string_view, 1> kValueMarkers = {"</｜DSML｜parameter>"};
constexpr std::array kSkipMarkers = {kInvoke, kCallsEnd, kInvokeEnd};
// Positions that the lists above share.
enum Marker : size_t { kAtInvoke, kAtCallsEnd, kAtInvokeEnd, kAtParameter };

constexpr size_t kMaxFieldBytes = 256;
constexpr size_t kMaxKeyBytes = 64 << 10;  // of all keys of one call

}  // namespace

DsmlToolCalls::DsmlToolCalls() { enter(State::kContent); }

void DsmlToolCalls::enter(State state) {
  state_ = state;
  switch (state) {
    case State::kContent:
      return scanner_.watch(kContentMarkers);
    case State::kBlock:
      return scanner_.watch(kBlockMarkers);
    case State::kName:
      return scanner_.watch(kNameMarkers);
    case State::kParameters:
      return scanner_.watch(kParameterMarkers);
    case State::kKey:
      return scanner_.watch(kKeyMarkers);
    case State::kText:
    case State::kJson:
    case State::kAgain:
      return scanner_.watch(kValueMarkers);
    case State::kSkip:
      return scanner_.watch(kSkipMarkers);
  }
}

void DsmlToolCalls::push(std::string_view text, std::vector<OutputEvent>& events) {
  scanner_.push(
      text, [&](std::string_view run) { return on_text(run, events); },
      [&](size_t marker) { on_marker(marker, events); });
}

void DsmlToolCalls::finish(std::vector<OutputEvent>& events, bool cut) {
  const bool in_text =
      state_ == State::kContent || state_ == State::kText || state_ == State::kJson;
  if (cut && (!in_text || is_begun_markup(scanner_.held()))) scanner_.drop_held();
  if (cut) field_.clear();
  scanner_.finish([&](std::string_view run) { return on_text(run, events); });
  break_call("the call was cut short", events);
  append_event(events, Kind::kMalformed, field_);
  field_.clear();
  enter(State::kContent);
}

size_t DsmlToolCalls::on_text(std::string_view text, std::vector<OutputEvent>& events) {
  switch (state_) {
    case State::kContent:
      append_event(events, Kind::kContent, text);
      return text.size();
    case State::kBlock:
    case State::kParameters: {
      const size_t blank = text.find_first_not_of(" \t\r\n");
      if (blank == std::string_view::npos) return text.size();
      break_call("text where a parameter was expected", events);
      enter(State::kSkip);
      return blank;
    }
    case State::kName:
    case State::kKey:
      return on_field(text, events);
    case State::kText: {
      std::string escaped;
      append_json_escaped(escaped, text);
      append_event(events, Kind::kToolArguments, escaped);
      return text.size();
    }
    case State::kJson:
      append_event(events, Kind::kToolArguments, text);
      return text.size();
    case State::kAgain:
      return text.size();
    case State::kSkip:
      append_event(events, Kind::kMalformed, text);
      return text.size();
  }
  return text.size();
}

size_t DsmlToolCalls::on_field(std::string_view text, std::vector<OutputEvent>& events) {
  const size_t taken = std::min(text.size(), kMaxFieldBytes - field_.size());
  field_ += text.substr(0, taken);
  if (taken < text.size()) {
    break_call("a name is too long", events);
    append_event(events, Kind::kMalformed, field_);
    field_.clear();
    enter(State::kSkip);
  }
  return taken;
}

void DsmlToolCalls::on_marker(size_t marker, std::vector<OutputEvent>& events) {
  switch (state_) {
    case State::kContent:
      return enter(State::kBlock);
    case State::kName:
      return start_call(events);
    case State::kKey:
      return start_value(/*is_text=*/marker == 0, events);
    case State::kText:
    case State::kJson:
      return end_value(events);
    case State::kAgain:
      return enter(State::kParameters);
    case State::kBlock:
    case State::kParameters:
    case State::kSkip:
      break;
  }
  if (marker == kAtParameter) return enter(State::kKey);
  if (marker == kAtInvokeEnd && in_call_) return end_call(events);
  break_call("the call has no end", events);
  if (marker == kAtInvoke) return enter(State::kName);
  enter(marker == kAtCallsEnd ? State::kContent : State::kBlock);
}

void DsmlToolCalls::start_call(std::vector<OutputEvent>& events) {
  append_event(events, Kind::kToolStart, field_);
  field_.clear();
  keys_.clear();
  key_bytes_ = 0;
  in_call_ = true;
  enter(State::kParameters);
}

void DsmlToolCalls::start_value(bool is_text, std::vector<OutputEvent>& events) {
  const bool first = keys_.empty();
  key_bytes_ += field_.size() + 1;
  if (keys_.contains(field_)) {
    field_.clear();
    return enter(State::kAgain);
  }
  keys_.insert(field_);
  if (key_bytes_ > kMaxKeyBytes) {
    break_call("too many parameters", events);
    append_event(events, Kind::kMalformed, field_);
    field_.clear();
    return enter(State::kSkip);
  }
  std::string opening = first ? "{\"" : ", \"";
  append_json_escaped(opening, field_);
  opening += is_text ? "\": \"" : "\": ";
  append_event(events, Kind::kToolArguments, opening);
  field_.clear();
  enter(is_text ? State::kText : State::kJson);
}

void DsmlToolCalls::end_value(std::vector<OutputEvent>& events) {
  if (state_ == State::kText) append_event(events, Kind::kToolArguments, "\"");
  enter(State::kParameters);
}

void DsmlToolCalls::end_call(std::vector<OutputEvent>& events) {
  append_event(events, Kind::kToolArguments, keys_.empty() ? "{}" : "}");
  append_event(events, Kind::kToolEnd, "");
  in_call_ = false;
  enter(State::kBlock);
}

void DsmlToolCalls::break_call(std::string_view why, std::vector<OutputEvent>& events) {
  if (in_call_) append_event(events, Kind::kToolBroken, why);
  in_call_ = false;
}

}  // namespace tamis
