// DeepSeek-V3.2: the rules of the encoder script that the model came with (it has no template).
// Thoughts after the last user turn are written back, tool calls are in DSML markup.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/chat_formats.h"
#include "text/chat_markers.h"
#include "text/python_json.h"

namespace tamis::chat {
namespace {

constexpr std::string_view kToolsBeforeList = R"(## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
)";
constexpr std::string_view kToolsAfterList = "\n</functions>\n";
constexpr std::string_view kResponseFormat =
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

class Encoder {
 public:
  Encoder(const std::vector<ChatMessage>& messages, const RenderOptions& options, PieceBuilder& out)
      : messages_(messages), options_(options), out_(out) {
    for (size_t i = 0; i < messages.size(); ++i) {
      const ChatRole role = messages[i].role;
      if (role == ChatRole::kUser || role == ChatRole::kDeveloper) {
        last_user_ = static_cast<int64_t>(i);
      }
      caller_.push_back(role == ChatRole::kTool && i > 0 ? caller_.back() : i);
    }
  }

  void run() {
    const auto first = static_cast<size_t>(options_.context_messages);
    if (first == 0) out_.format(kBos);
    if (first < messages_.size()) check_dropped();
    for (size_t i = first; i < messages_.size(); ++i) append(i);
  }

 private:
  // The official encoder drops these messages with the thoughts and then fails on its own count.
  void check_dropped() const {
    if (!options_.thinking || options_.keep_thinking) return;
    for (int64_t i = 0; i < last_user_; ++i) {
      const auto index = static_cast<size_t>(i);
      if (messages_[index].role == ChatRole::kDeveloper) {
        refuse_message(index,
                       "a developer message before the last user turn cannot be rendered "
                       "while earlier thinking is dropped; keep thinking");
      }
    }
  }

  bool ends_prompt(size_t i) const { return i + 1 == messages_.size(); }

  void append(size_t i) {
    switch (messages_[i].role) {
      case ChatRole::kSystem:
        out_.plain(messages_[i].content);
        append_extras(messages_[i]);
        return;
      case ChatRole::kDeveloper:
        if (messages_[i].content.empty()) refuse_message(i, "a developer message needs content");
        out_.format(kUser);
        append_extras(messages_[i]);
        out_.format("\n\n# The user's message is: ");
        return append_turn(i);
      case ChatRole::kUser:
        out_.format(kUser);
        return append_turn(i);
      case ChatRole::kTool:
        return append_result(i);
      case ChatRole::kAssistant:
        return append_answer(i);
    }
  }

  void append_extras(const ChatMessage& message) {
    if (!message.tools.empty()) {
      out_.format("\n\n");
      out_.format(kToolsBeforeList);
      const char* separator = "";
      for (const ToolSpec& tool : message.tools) {
        out_.format(separator);
        out_.plain(tool.function_json);
        separator = "\n";
      }
      out_.format(kToolsAfterList);
    }
    if (!message.response_format.empty()) {
      out_.format(kResponseFormat);
      out_.plain(message.response_format);
    }
  }

  void append_turn(size_t i) {
    out_.plain(need_content(messages_, i));
    if (ends_prompt(i) && !options_.add_generation_prompt) return;
    out_.format(kAssistant);
    const bool last = static_cast<int64_t>(i) == last_user_;
    out_.format(last && options_.thinking ? kThinkStart : kThinkEnd);
  }

  // Results answer the calls of the nearest assistant message, in order; the last one closes them.
  void append_result(size_t i) {
    const ChatMessage& message = messages_[caller_[i]];
    const size_t results = i - caller_[i];
    if (message.role != ChatRole::kAssistant || message.tool_calls.size() < results) {
      refuse_message(i, "a tool result without a call of the assistant before it");
    }
    if (results == 1) out_.format("\n\n<function_results>");
    out_.format("\n<result>");
    out_.plain(need_content(messages_, i));
    out_.format("</result>");
    if (results < message.tool_calls.size()) return;
    out_.format("\n</function_results>");
    if (ends_prompt(i) && !options_.add_generation_prompt) return;
    out_.format("\n\n");
    const bool current = static_cast<int64_t>(i) >= last_user_;
    out_.format(current && options_.thinking ? kThinkStart : kThinkEnd);
  }

  void append_answer(size_t i) {
    const ChatMessage& message = messages_[i];
    if (options_.thinking && static_cast<int64_t>(i) > last_user_) {
      if (message.reasoning_content.empty() && message.tool_calls.empty()) {
        refuse_message(i,
                       "an assistant message after the last user turn needs reasoning_content "
                       "or tool_calls when thinking");
      }
      out_.plain(message.reasoning_content);
      out_.format(kThinkEnd);
    }
    out_.plain(message.content);
    if (!message.tool_calls.empty()) append_calls(i);
    out_.format(kEos);
  }

  void append_calls(size_t i) {
    out_.format("\n\n<｜DSML｜function_calls>\n");
    const std::vector<ToolCall>& calls = messages_[i].tool_calls;
    for (size_t c = 0; c < calls.size(); ++c) {
      out_.format("<｜DSML｜invoke name=\"");
      out_.plain(calls[c].name);
      out_.format("\">\n");
      append_arguments(calls[c].arguments, "messages[" + std::to_string(i) + "].tool_calls[" +
                                               std::to_string(c) + "].function.arguments");
      out_.format("\n</｜DSML｜invoke>\n");
    }
    out_.format("</｜DSML｜function_calls>");
  }

  void append_arguments(const std::string& text, const std::string& where) {
    const OrderedJson arguments = parse_python_json(text, where, /*allow_duplicate_keys=*/true);
    if (!arguments.is_object()) throw InputError(where + ": want the JSON text of an object");
    const char* separator = "";
    for (auto it = arguments.begin(); it != arguments.end(); ++it) {
      const OrderedJson& value = it.value();
      out_.format(separator);
      out_.format("<｜DSML｜parameter name=\"");
      out_.plain(it.key());
      out_.format(value.is_string() ? "\" string=\"true\">" : "\" string=\"false\">");
      out_.plain(value.is_string() ? value.get_ref<const std::string&>() : python_json_dump(value));
      out_.format("</｜DSML｜parameter>");
      separator = "\n";
    }
  }

  const std::vector<ChatMessage>& messages_;
  const RenderOptions& options_;
  PieceBuilder& out_;
  int64_t last_user_ = -1;
  std::vector<size_t> caller_;  // of a tool result: the last message before it that is none
};

}  // namespace

void render_v32(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                PieceBuilder& out) {
  if (options.tools.empty()) return Encoder(messages, options, out).run();
  // Tools of the request belong to the first system message, or to one made for them.
  std::vector<ChatMessage> with_tools = messages;
  RenderOptions shifted = options;
  if (with_tools.empty() || with_tools.front().role != ChatRole::kSystem) {
    ChatMessage system;
    system.role = ChatRole::kSystem;
    with_tools.insert(with_tools.begin(), std::move(system));
    if (shifted.context_messages > 0) ++shifted.context_messages;
  }
  std::vector<ToolSpec>& tools = with_tools.front().tools;
  tools.insert(tools.end(), options.tools.begin(), options.tools.end());
  Encoder(with_tools, shifted, out).run();
}

}  // namespace tamis::chat
