// Tool calls in a model's answer, as it is streamed. Use OutputParser, which keeps thoughts away
// from this: markup inside a thought is no call.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/chat.h"
#include "text/marker_scanner.h"

namespace tamis {

struct OutputEvent {
  enum class Kind {
    kReasoning,      // text of the thought
    kContent,        // text of the answer
    kToolStart,      // a call begins; text is the function's name
    kToolArguments,  // the next part of its arguments, JSON text
    kToolEnd,        // the call is complete
    kToolBroken,     // the call that began has no proper end; text says why
    kMalformed,      // text inside the tool markup that belongs to no call
  };
  Kind kind;
  std::string text;

  friend bool operator==(const OutputEvent&, const OutputEvent&) = default;
};

// Appends, joining text to a neighbour of the same kind.
void append_event(std::vector<OutputEvent>& events, OutputEvent::Kind kind, std::string_view text);

// True for the beginning of a marker that is too long to be anything else.
bool is_begun_markup(std::string_view held);

// <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>...<｜tool▁calls▁end｜>
// The arguments are passed on as the model wrote them.
class V31ToolCalls {
 public:
  V31ToolCalls();
  void push(std::string_view text, std::vector<OutputEvent>& events);
  void finish(std::vector<OutputEvent>& events, bool cut);

 private:
  enum class State { kContent, kBetween, kName, kArguments, kSkip };

  size_t on_text(std::string_view text, std::vector<OutputEvent>& events);
  size_t on_name(std::string_view text, std::vector<OutputEvent>& events);
  void on_marker(size_t marker, std::vector<OutputEvent>& events);
  void leave_call(std::vector<OutputEvent>& events, bool complete);

  MarkerScanner scanner_;
  State state_ = State::kContent;
  std::string name_;
};

// V3.2's <｜DSML｜function_calls> block. Its parameters become the members of one JSON object. Of a
// parameter that comes twice the first value counts, the other is dropped.
class DsmlToolCalls {
 public:
  DsmlToolCalls();
  void push(std::string_view text, std::vector<OutputEvent>& events);
  void finish(std::vector<OutputEvent>& events, bool cut);

 private:
  enum class State { kContent, kBlock, kName, kParameters, kKey, kText, kJson, kAgain, kSkip };

  size_t on_text(std::string_view text, std::vector<OutputEvent>& events);
  size_t on_field(std::string_view text, std::vector<OutputEvent>& events);
  void on_marker(size_t marker, std::vector<OutputEvent>& events);
  void start_call(std::vector<OutputEvent>& events);
  void start_value(bool is_text, std::vector<OutputEvent>& events);
  void end_value(std::vector<OutputEvent>& events);
  void end_call(std::vector<OutputEvent>& events);
  void break_call(std::string_view why, std::vector<OutputEvent>& events);
  void enter(State state);

  MarkerScanner scanner_;
  State state_ = State::kContent;
  bool in_call_ = false;
  std::string field_;  // the name or key that is being read
  std::set<std::string> keys_;
  size_t key_bytes_ = 0;
};

// The one that belongs to a chat format.
class ToolCallParser {
 public:
  explicit ToolCallParser(ChatFormat format);
  void push(std::string_view text, std::vector<OutputEvent>& events);
  // `cut`: somebody ended the text in its middle, so that markup that was begun is no text.
  void finish(std::vector<OutputEvent>& events, bool cut);

 private:
  std::variant<V31ToolCalls, DsmlToolCalls> calls_;
};

}  // namespace tamis
