// One answer on its way from tokens to text: decoding, stop strings, thoughts and tool calls.
//
//   Generation g(tokenizer, options);
//   g.push(event, parts);            // parts: what is certain now
//   if (g.finished()) use(g.result());
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/text_stream.h"
#include "text/output_parser.h"
#include "text/tokenizer.h"

namespace tamis::server {

struct GenerationOptions {
  std::optional<ChatFormat> format;  // none: the text as it is
  bool in_thinking = false;
  bool tools = false;
  bool one_call = false;  // end after the first tool call
  bool logprobs = false;
  bool reads = false;  // keep what each token's attention read
  std::vector<std::string> stop;
};

struct GenerationResult {
  std::string reasoning, content;
  std::vector<ToolCall> tool_calls;
  std::vector<SampledToken> tokens;  // with logprobs or reads
  std::string_view finish;           // "stop", "length", "tool_calls"
  std::string stop_string;           // of those that were asked for, if one came
  int64_t token_count = 0, reasoning_tokens = 0;
};

class Generation {
 public:
  Generation(const Tokenizer& tokenizer, GenerationOptions options);

  // Appends to parts what this token made certain. A kError event is the caller's to look at.
  void push(const TokenEvent& event, std::vector<OutputEvent>& parts);

  bool finished() const { return !result_.finish.empty(); }
  // Finished while the engine would go on: the caller cancels.
  bool wants_cancel() const { return finished() && !engine_done_; }
  const GenerationResult& result() const { return result_; }

 private:
  void add(std::string_view text, std::vector<OutputEvent>& parts);
  void end(std::string_view reason, std::vector<OutputEvent>& parts);
  void keep(const OutputEvent& part);

  GenerationOptions options_;
  TextStream text_;
  std::optional<OutputParser> parser_;
  GenerationResult result_;
  bool engine_done_ = false, call_open_ = false;
};

// "call_" and 24 letters and digits, from a counter and a seed: unique in a process.
std::string new_id(std::string_view prefix);

}  // namespace tamis::server
