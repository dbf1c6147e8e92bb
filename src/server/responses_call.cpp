// OpenAI's /v1/responses: a list of items instead of messages. Nothing is stored here, so that a
// request that builds on a stored one is refused.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "server/answer_format.h"
#include "server/api_error.h"
#include "server/call.h"
#include "text/python_json.h"

namespace tamis::server {
namespace {

// A string, or parts of text under any of the names that text has here.
std::string content_text(const Fields& parent, const std::string& path,
                         const OrderedJson& content) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    parent.refuse("content", fmt::format("want a string or parts, got {}", type_name(content)));
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    Fields part(content[i], fmt::format("{}[{}]", path, i));
    const std::string type = part.text("type").value_or("");
    if (type == "refusal") {
      text += part.text("refusal").value_or("");
    } else if (type.ends_with("_text") || type == "text") {
      if (!text.empty()) text += '\n';
      text += part.text("text").value_or("");
      part.ignore({"annotations", "logprobs"});
    } else {
      part.refuse("type", "'" + printable(type, 40) + "' is not supported, only text is");
    }
    part.no_others();
  }
  return text;
}

// Puts items together to messages: thoughts, words and calls of one turn are one message.
class InputReader {
 public:
  explicit InputReader(std::vector<ChatMessage>& out) : out_(out) {}

  void read(const OrderedJson& value, const std::string& path) {
    Fields item(value, path);
    item.ignore({"id", "status"});
    const std::string type = item.text("type").value_or("message");
    if (type == "message") {
      read_message(item);
    } else if (type == "function_call") {
      read_call(item);
    } else if (type == "function_call_output") {
      read_output(item);
    } else if (type == "reasoning") {
      read_reasoning(item);
    } else {
      item.refuse("type", "'" + printable(type, 40) + "' is not supported");
    }
    item.no_others();
  }

 private:
  // The answer that is being put together.
  ChatMessage& answer() {
    if (out_.empty() || !open_) {
      out_.emplace_back();
      out_.back().role = ChatRole::kAssistant;
      out_.back().has_content = true;
      open_ = true;
    }
    return out_.back();
  }

  void read_message(Fields& item) {
    const std::string role = item.text("role").value_or("");
    item.ignore({"phase"});
    const OrderedJson* content = item.find("content");
    if (content == nullptr) item.refuse("content", "is missing");
    std::string text = content_text(item, item.path_of("content"), *content);
    if (role == "assistant") {
      // Words after words or after calls are another answer.
      if (open_ && (!out_.back().content.empty() || !out_.back().tool_calls.empty())) open_ = false;
      answer().content = std::move(text);
      return;
    }
    open_ = false;
    ChatMessage m;
    if (role == "system") {
      m.role = ChatRole::kSystem;
    } else if (role == "developer") {
      m.role = ChatRole::kDeveloper;
    } else if (role != "user") {
      item.refuse("role", "want user, assistant, system or developer");
    }
    m.content = std::move(text);
    m.has_content = true;
    out_.push_back(std::move(m));
  }

  void read_call(Fields& item) {
    ToolCall call;
    const auto id = item.text("call_id"), name = item.text("name"), text = item.text("arguments");
    if (!name) item.refuse("name", "is missing");
    if (!text) item.refuse("arguments", "is missing");
    call.id = id.value_or("");
    call.name = *name;
    call.arguments = *text;
    answer().tool_calls.push_back(std::move(call));
  }

  void read_output(Fields& item) {
    open_ = false;
    ChatMessage m;
    m.role = ChatRole::kTool;
    m.has_content = true;
    m.tool_call_id = item.text("call_id").value_or("");
    const OrderedJson* output = item.find("output");
    if (output == nullptr) item.refuse("output", "is missing");
    m.content = content_text(item, item.path_of("output"), *output);
    out_.push_back(std::move(m));
  }

  void read_reasoning(Fields& item) {
    item.ignore({"summary", "encrypted_content"});
    const OrderedJson* content = item.find("content");
    if (content == nullptr) return;
    if (open_) open_ = out_.back().tool_calls.empty() && out_.back().content.empty();
    answer().reasoning_content += content_text(item, item.path_of("content"), *content);
  }

  std::vector<ChatMessage>& out_;
  bool open_ = false;
};

void read_input(Fields& f, ChatPrompt& chat) {
  if (const auto instructions = f.text("instructions")) {
    ChatMessage m;
    m.role = ChatRole::kSystem;
    m.content = *instructions;
    m.has_content = true;
    chat.messages.push_back(std::move(m));
  }
  const OrderedJson* input = f.find("input");
  if (input == nullptr) f.refuse("input", "is missing");
  if (input->is_string()) {
    ChatMessage m;
    m.content = input->get<std::string>();
    m.has_content = true;
    chat.messages.push_back(std::move(m));
    return;
  }
  if (!input->is_array() || input->empty()) f.refuse("input", "want a string or a list of items");
  if (static_cast<int64_t>(input->size()) > kMaxMessages) {
    f.refuse("input", fmt::format("want at most {} items, got {}", kMaxMessages, input->size()));
  }
  InputReader reader(chat.messages);
  for (size_t i = 0; i < input->size(); ++i) {
    reader.read((*input)[i], fmt::format("input[{}]", i));
  }
}

void read_tools(Fields& f, ChatPrompt& chat) {
  const OrderedJson* tools = f.array("tools");
  if (tools == nullptr) return;
  for (size_t i = 0; i < tools->size(); ++i) {
    Fields t((*tools)[i], fmt::format("tools[{}]", i));
    if (t.text("type").value_or("") != "function") {
      t.refuse("type", "only function is supported");
    }
    const auto name = t.text("name");
    if (!name) t.refuse("name", "is missing");
    const OrderedJson* parameters = t.object("parameters");
    const bool strict = t.flag("strict").value_or(false);
    chat.tools.push_back(make_tool(*name, t.text("description").value_or(""), parameters, strict));
    t.no_others();
  }
}

bool read_effort(Fields& f) {
  bool thinking = read_thinking(f);
  const OrderedJson* reasoning = f.object("reasoning");
  if (reasoning == nullptr) return thinking;
  Fields r(*reasoning, "reasoning");
  if (const auto effort = r.text("effort")) thinking = *effort != "none";
  r.ignore({"summary", "generate_summary"});
  r.no_others();
  return thinking;
}

void read_logprobs(Fields& f, Call& call) {
  if (const auto top = f.integer("top_logprobs", 0, 20)) {
    call.request.sampling.top_logprobs = *top;
  }
  for (const std::string& what : f.texts("include", 16)) {
    if (what == "message.output_text.logprobs") {
      call.generation.logprobs = true;
    } else if (what != "reasoning.encrypted_content") {
      f.refuse("include", "'" + printable(what, 60) + "' is not known here");
    }
  }
}

void read_text(Fields& f, Call& call) {
  const OrderedJson* text = f.object("text");
  if (text == nullptr) return;
  Fields t(*text, "text");
  read_text_format(t, "format", call);
  t.ignore({"verbosity"});
  t.no_others();
}

// What the answer repeats of the request, with the values that hold where it says nothing.
std::string repeated_fields(const OrderedJson& root, const Call& call) {
  OrderedJson out = OrderedJson::object();
  const auto repeat = [&](const char* key, OrderedJson otherwise) {
    const auto it = root.find(key);
    out[key] = it == root.end() || it->is_null() ? std::move(otherwise) : *it;
  };
  repeat("instructions", nullptr);
  repeat("max_output_tokens", nullptr);
  repeat("metadata", OrderedJson::object());
  repeat("parallel_tool_calls", true);
  repeat("reasoning", {{"effort", nullptr}, {"summary", nullptr}});
  repeat("text", {{"format", {{"type", "text"}}}});
  repeat("tool_choice", "auto");
  repeat("tools", OrderedJson::array());
  repeat("temperature", call.request.sampling.temperature);
  repeat("top_p", call.request.sampling.top_p);
  return out.dump();
}

}  // namespace

Call read_responses_call(std::string_view body, const ServedModel& model) {
  need_chat_format(model);
  const OrderedJson root = parse_body(body);
  Fields f(root, "");
  Call call;
  read_model(f, model);
  read_sampling(f, model, call);
  read_logprobs(f, call);
  call.stream = f.flag("stream").value_or(false);
  ChatPrompt chat;
  read_input(f, chat);
  read_tools(f, chat);
  const ToolChoice choice = read_tool_choice(f);
  call.generation.one_call = !f.flag("parallel_tool_calls").value_or(true);
  read_text(f, call);
  chat.thinking = read_effort(f);
  const auto max_tokens = f.integer("max_output_tokens", 1, INT32_MAX);
  f.only("background", false);
  f.only("truncation", "disabled");
  f.ignore({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_retention", "stream_options", "max_tool_calls", "client_metadata"});
  f.no_others();
  call.generation.tools = choice.mode != ToolChoice::Mode::kNone;
  if (!call.generation.tools) chat.tools.clear();
  apply_tool_choice(choice, chat, call);
  render_prompt(chat, model, call);
  fit_into_context(max_tokens, "max_output_tokens", model.max_context, model, call);
  call.repeated = repeated_fields(root, call);
  return call;
}

}  // namespace tamis::server
