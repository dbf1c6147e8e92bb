// DeepSeek-V3.1, its plain variant without tools, and V3.2-Exp. The rules are those of the Jinja
// templates that the models came with; docs/formats/chat.md tells how the three differ.
#include "base/error.h"
#include "text/chat_formats.h"
#include "text/chat_markers.h"

namespace tamis::chat {
namespace {

constexpr std::string_view kToolUse =
    "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments"
    "<｜tool▁call▁end｜>{additional_tool_calls}<｜tool▁calls▁end｜>\n\nWhere:\n\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
    "Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces\n";

// The templates have no word for tools: this text, which DeepSeek's model card gives, is part of
// the system prompt.
void append_tools(const std::vector<ToolSpec>& tools, PieceBuilder& out) {
  if (tools.empty()) return;
  out.format("\n\n## Tools\nYou have access to the following tools:\n");
  for (const ToolSpec& tool : tools) {
    out.format("\n### ");
    out.plain(tool.name);
    out.format("\nDescription: ");
    out.plain(tool.description);
    out.format("\n\nParameters: ");
    out.plain(tool.parameters_json);
    out.format("\n");
  }
  out.format(kToolUse);
}

bool opens_prompt(const RenderOptions& options) { return options.context_messages == 0; }

// All system messages stand together at the head, wherever they are in the list.
void append_head(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                 PieceBuilder& out) {
  if (opens_prompt(options)) out.format(kBos);
  bool first = true;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != ChatRole::kSystem) continue;
    if (!opens_prompt(options)) {
      if (static_cast<int64_t>(i) < options.context_messages) continue;
      refuse_message(i, "a system message after the context: this format writes it at the head");
    }
    if (!first) out.format("\n\n");
    first = false;
    out.plain(messages[i].content);
    append_tools(messages[i].tools, out);
  }
  if (opens_prompt(options)) append_tools(options.tools, out);
}

void append_think(bool thinking, PieceBuilder& out) {
  out.format(thinking ? kThinkStart : kThinkEnd);
}

// What the templates track from message to message, under their names.
class Turns {
 public:
  Turns(bool exp, const RenderOptions& options, PieceBuilder& out)
      : exp_(exp), options_(options), out_(out) {}

  void run(const std::vector<ChatMessage>& messages) {
    for (const ChatMessage& m : messages) only_system_ |= m.role == ChatRole::kSystem;
    PieceBuilder known;  // receives what the context rendered to, which nobody reads
    for (size_t i = 0; i < messages.size(); ++i) {
      const bool in_context = static_cast<int64_t>(i) < options_.context_messages;
      append_message(messages, i, in_context ? known : out_);
    }
    append_generation_prompt();
  }

 private:
  void append_message(const std::vector<ChatMessage>& messages, size_t i, PieceBuilder& out) {
    switch (messages[i].role) {
      case ChatRole::kSystem:
        return;
      case ChatRole::kDeveloper:  // V3.2's role for what a user's application asks
      case ChatRole::kUser:
        out.format(kUser);
        out.plain(need_content(messages, i));
        is_tool_ = false;
        is_last_user_ = true;
        break;
      case ChatRole::kAssistant:
        if (messages[i].tool_calls.empty()) {
          append_answer(messages, i, out);
        } else {
          append_calls(messages[i], out);
        }
        is_last_user_ = is_tool_ = false;
        break;
      case ChatRole::kTool:
        out.format(kToolOutputBegin);
        out.plain(need_content(messages, i));
        out.format(kToolOutputEnd);
        is_last_user_ = false;
        is_tool_ = true;
        break;
    }
    only_system_ = false;
  }

  void append_answer(const std::vector<ChatMessage>& messages, size_t i, PieceBuilder& out) {
    const ChatMessage& message = messages[i];
    std::string_view content = need_content(messages, i);
    if (is_last_user_) {
      out.format(kAssistant);
      append_think(message.prefix && options_.thinking, out);
    }
    is_prefix_ |= message.prefix;
    const size_t thought = content.find(kThinkEnd);
    if (!is_tool_ && thought != std::string_view::npos) {
      content.remove_prefix(thought + kThinkEnd.size());
    }
    out.plain(content);
    out.format(kEos);
  }

  void append_calls(const ChatMessage& message, PieceBuilder& out) {
    if (is_last_user_ || (exp_ && only_system_)) {
      out.format(kAssistant);
      out.format(kThinkEnd);
    }
    out.plain(message.content);
    out.format(kToolCallsBegin);
    for (const ToolCall& call : message.tool_calls) {
      out.format(kToolCallBegin);
      out.plain(call.name);
      out.format(kToolSep);
      out.plain(call.arguments);
      out.format(kToolCallEnd);
    }
    out.format(kToolCallsEnd);
    out.format(kEos);
  }

  void append_generation_prompt() {
    if (!options_.add_generation_prompt || is_tool_) return;
    const bool wanted = is_last_user_ || (exp_ && (only_system_ || !is_prefix_));
    if (!wanted) return;
    out_.format(kAssistant);
    append_think(options_.thinking, out_);
  }

  const bool exp_;
  const RenderOptions& options_;
  PieceBuilder& out_;
  bool is_last_user_ = false;
  bool is_tool_ = false;
  bool is_prefix_ = false;
  bool only_system_ = false;
};

}  // namespace

void render_v31(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                PieceBuilder& out) {
  append_head(messages, options, out);
  Turns(/*exp=*/false, options, out).run(messages);
}

void render_v32_exp(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                    PieceBuilder& out) {
  append_head(messages, options, out);
  Turns(/*exp=*/true, options, out).run(messages);
}

void render_v31_plain(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                      PieceBuilder& out) {
  if (!options.tools.empty()) {
    throw InputError("tools: the chat format v3.1-plain has none");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].tools.empty()) refuse_message(i, "tools: the chat format v3.1-plain has none");
  }
  append_head(messages, options, out);
  for (auto i = static_cast<size_t>(options.context_messages); i < messages.size(); ++i) {
    if (messages[i].role == ChatRole::kUser) {
      out.format(kUser);
      out.plain(need_content(messages, i));
    } else if (messages[i].role == ChatRole::kAssistant) {
      std::string_view content = need_content(messages, i);
      const size_t thought = content.rfind(kThinkEnd);
      if (thought != std::string_view::npos) content.remove_prefix(thought + kThinkEnd.size());
      out.format(kAssistant);
      out.format(kThinkEnd);
      out.plain(content);
      out.format(kEos);
    }
  }
  if (!options.add_generation_prompt) return;
  out.format(kAssistant);
  append_think(options.thinking, out);
}

}  // namespace tamis::chat
