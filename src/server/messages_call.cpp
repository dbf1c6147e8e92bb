// Anthropic's form of a request: system beside the messages, content in blocks.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "server/answer_format.h"
#include "server/api_error.h"
#include "server/call.h"
#include "text/python_json.h"

namespace tamis::server {
namespace {

void append_text(std::string& to, const std::string& text) {
  if (!to.empty() && !text.empty()) to += '\n';
  to += text;
}

std::string block_type(Fields& block) {
  block.ignore({"cache_control"});
  const auto type = block.text("type");
  if (!type) block.refuse("type", "is missing");
  return *type;
}

std::string block_text(Fields& block) {
  block.ignore({"citations"});
  const auto text = block.text("text");
  if (!text) block.refuse("text", "is missing");
  block.no_others();
  return *text;
}

// Calls on_block(fields, type) for each block; a string is one block of text.
template <typename F>
void for_each_block(const Fields& parent, const std::string& path, const OrderedJson& content,
                    F on_block) {
  if (content.is_string()) {
    const OrderedJson block{{"type", "text"}, {"text", content}};
    Fields f(block, path);
    return on_block(f, block_type(f));
  }
  if (!content.is_array()) {
    parent.refuse("content", fmt::format("want a string or blocks, got {}", type_name(content)));
  }
  for (size_t i = 0; i < content.size(); ++i) {
    Fields f(content[i], fmt::format("{}[{}]", path, i));
    on_block(f, block_type(f));
  }
}

std::string text_of(const Fields& parent, const std::string& path, const OrderedJson& content) {
  std::string text;
  for_each_block(parent, path, content, [&](Fields& block, const std::string& type) {
    if (type != "text") block.refuse("type", "only text is supported here");
    append_text(text, block_text(block));
  });
  return text;
}

ChatMessage tool_result(Fields& block) {
  ChatMessage result;
  result.role = ChatRole::kTool;
  result.has_content = true;
  const auto id = block.text("tool_use_id");
  if (!id) block.refuse("tool_use_id", "is missing");
  result.tool_call_id = *id;
  block.flag("is_error");
  if (const OrderedJson* content = block.find("content")) {
    result.content = text_of(block, block.path_of("content"), *content);
  }
  block.no_others();
  return result;
}

ToolCall tool_use(Fields& block) {
  ToolCall call;
  call.id = block.text("id").value_or("");
  const auto name = block.text("name");
  if (!name) block.refuse("name", "is missing");
  call.name = *name;
  const OrderedJson* input = block.object("input");
  call.arguments = input == nullptr ? "{}" : python_json_dump(*input);
  block.ignore({"caller"});
  block.no_others();
  return call;
}

// The results of calls come before what the user says to them.
void read_user(Fields& f, const OrderedJson& content, std::vector<ChatMessage>& out) {
  ChatMessage user;
  bool results = false;
  for_each_block(f, f.path_of("content"), content, [&](Fields& block, const std::string& type) {
    if (type == "text") {
      append_text(user.content, block_text(block));
    } else if (type == "tool_result") {
      out.push_back(tool_result(block));
      results = true;
    } else {
      block.refuse("type", "'" + printable(type, 40) + "' is not supported, only text is");
    }
  });
  if (results && user.content.empty()) return;
  user.has_content = true;
  out.push_back(std::move(user));
}

void read_assistant(Fields& f, const OrderedJson& content, std::vector<ChatMessage>& out) {
  ChatMessage answer;
  answer.role = ChatRole::kAssistant;
  answer.has_content = true;
  for_each_block(f, f.path_of("content"), content, [&](Fields& block, const std::string& type) {
    if (type == "text") {
      append_text(answer.content, block_text(block));
    } else if (type == "thinking") {
      append_text(answer.reasoning_content, block.text("thinking").value_or(""));
      block.ignore({"signature"});
      block.no_others();
    } else if (type == "tool_use") {
      answer.tool_calls.push_back(tool_use(block));
    } else if (type != "redacted_thinking") {
      block.refuse("type", "'" + printable(type, 40) + "' is not supported in an answer");
    }
  });
  out.push_back(std::move(answer));
}

void read_message(const OrderedJson& value, const std::string& path,
                  std::vector<ChatMessage>& out) {
  Fields f(value, path);
  const std::string role = f.text("role").value_or("");
  const OrderedJson* content = f.find("content");
  if (content == nullptr) f.refuse("content", "is missing");
  f.no_others();
  if (role == "user") return read_user(f, *content, out);
  if (role == "assistant") return read_assistant(f, *content, out);
  if (role != "system") f.refuse("role", "want user, assistant or system");
  ChatMessage system;
  system.role = ChatRole::kSystem;
  system.has_content = true;
  system.content = text_of(f, f.path_of("content"), *content);
  out.push_back(std::move(system));
}

void read_messages(Fields& f, ChatPrompt& chat) {
  if (const OrderedJson* system = f.find("system")) {
    ChatMessage m;
    m.role = ChatRole::kSystem;
    m.has_content = true;
    m.content = text_of(f, "system", *system);
    chat.messages.push_back(std::move(m));
  }
  const OrderedJson* messages = f.array("messages");
  if (messages == nullptr) f.refuse("messages", "is missing");
  if (messages->empty()) f.refuse("messages", "is empty");
  if (static_cast<int64_t>(messages->size()) > kMaxMessages) {
    f.refuse("messages", fmt::format("want at most {}, got {}", kMaxMessages, messages->size()));
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    read_message((*messages)[i], fmt::format("messages[{}]", i), chat.messages);
  }
  // What the assistant has begun, it shall continue.
  ChatMessage& last = chat.messages.back();
  if (last.role == ChatRole::kAssistant && last.tool_calls.empty()) last.prefix = true;
}

void read_tools(Fields& f, ChatPrompt& chat) {
  const OrderedJson* tools = f.array("tools");
  if (tools == nullptr) return;
  for (size_t i = 0; i < tools->size(); ++i) {
    Fields t((*tools)[i], fmt::format("tools[{}]", i));
    if (t.text("type").value_or("custom") != "custom") {
      t.refuse("type", "only custom tools are supported");
    }
    const auto name = t.text("name");
    if (!name) t.refuse("name", "is missing");
    const OrderedJson* schema = t.object("input_schema");
    const bool strict = t.flag("strict").value_or(false);
    chat.tools.push_back(make_tool(*name, t.text("description").value_or(""), schema, strict));
    t.ignore({"cache_control", "input_examples", "eager_input_streaming", "allowed_callers"});
    t.no_others();
  }
}

ToolChoice read_choice(Fields& f, Call& call) {
  using Mode = ToolChoice::Mode;
  const OrderedJson* choice = f.object("tool_choice");
  if (choice == nullptr) return {};
  Fields c(*choice, "tool_choice");
  const std::string type = c.text("type").value_or("");
  call.generation.one_call = c.flag("disable_parallel_tool_use").value_or(false);
  const auto name = c.text("name");
  c.no_others();
  if (type == "auto") return {};
  if (type == "any") return {Mode::kRequired, {}};
  if (type == "none") return {Mode::kNone, {}};
  if (type != "tool") c.refuse("type", "want auto, any, tool or none");
  if (!name) c.refuse("name", "is missing");
  return {Mode::kRequired, {*name}};
}

// {"effort", "format"}; what effort is asked for changes nothing here.
void read_output(Fields& f, Call& call) {
  read_text_format(f, "output_format", call);
  const OrderedJson* config = f.object("output_config");
  if (config == nullptr) return;
  Fields o(*config, "output_config");
  o.text("effort");
  read_text_format(o, "format", call);
  o.no_others();
}

// All that decides the prompt.
ChatPrompt read_prompt(Fields& f, const ServedModel& model, Call& call) {
  need_chat_format(model);
  read_model(f, model);
  ChatPrompt chat;
  read_messages(f, chat);
  read_tools(f, chat);
  const ToolChoice choice = read_choice(f, call);
  read_output(f, call);
  chat.thinking = read_thinking(f);
  f.ignore({"metadata", "service_tier", "cache_control"});
  call.generation.tools = choice.mode != ToolChoice::Mode::kNone;
  if (!call.generation.tools) chat.tools.clear();
  apply_tool_choice(choice, chat, call);
  return chat;
}

}  // namespace

Call read_messages_call(std::string_view body, const ServedModel& model) {
  const OrderedJson root = parse_body(body);
  Fields f(root, "");
  Call call;
  const ChatPrompt chat = read_prompt(f, model, call);
  call.stream = f.flag("stream").value_or(false);
  read_sampling(f, model, call);
  if (f.find("stop_sequences") != nullptr) {
    call.generation.stop = read_stop_texts(f, "stop_sequences");
  }
  const auto max_tokens = f.integer("max_tokens", 1, INT32_MAX);
  if (!max_tokens) f.refuse("max_tokens", "is missing");
  f.no_others();
  render_prompt(chat, model, call);
  fit_into_context(max_tokens, "max_tokens", 1, model, call);
  return call;
}

int64_t count_message_tokens(std::string_view body, const ServedModel& model) {
  const OrderedJson root = parse_body(body);
  Fields f(root, "");
  Call call;
  const ChatPrompt chat = read_prompt(f, model, call);
  f.no_others();
  render_prompt(chat, model, call);
  return static_cast<int64_t>(call.prompts.front().size());
}

}  // namespace tamis::server
