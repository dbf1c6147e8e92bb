// Splits what a model writes into thoughts, answer and tool calls while it is written.
//   OutputParser parser({ChatFormat::kV32, starts_in_thinking(pieces), /*tools=*/true});
//   parser.push(delta, events);   // decoded text, in pieces of any size; appends to events
//   parser.finish(events);
// The events are the same for every way of cutting the text, once neighbours of one kind are
// joined, which push() does within `events`. Time is linear; memory is one marker, one name, and
// the parameter names of the current call. Nothing in the output is evaluated.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"
#include "text/marker_scanner.h"
#include "text/tool_call_parser.h"

namespace tamis {

// Everything before </think> is reasoning, if the prompt opened a thought; the rest is answer.
// A <think> that the model repeats at the very start is dropped.
class ReasoningParser {
 public:
  explicit ReasoningParser(bool in_thinking);

  // Appends kReasoning events, and the text after the thought to `answer`.
  void push(std::string_view text, std::vector<OutputEvent>& events, std::string& answer);
  void finish(std::vector<OutputEvent>& events);

 private:
  MarkerScanner scanner_;
  bool in_thinking_;
  bool at_start_ = true;
};

struct OutputParserOptions {
  ChatFormat format = ChatFormat::kV31;
  bool in_thinking = false;
  bool tools = true;  // false: tool markup is ordinary text
};

class OutputParser {
 public:
  explicit OutputParser(const OutputParserOptions& options);

  void push(std::string_view text, std::vector<OutputEvent>& events);
  // At the end of the output: gives out what was held back. A call without its end is broken.
  // `cut`: a limit ended the output, so that markup that was begun is no text.
  void finish(std::vector<OutputEvent>& events, bool cut = false);

 private:
  ReasoningParser reasoning_;
  ToolCallParser tools_;
  bool parse_tools_;
};

}  // namespace tamis
