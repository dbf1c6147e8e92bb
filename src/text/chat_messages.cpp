// Reads messages and tools from JSON. Every error names the path of the value that is wrong.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/chat.h"
#include "text/python_json.h"

namespace tamis {
namespace {

const char* type_name(const OrderedJson& value) {
  switch (value.type()) {
    case OrderedJson::value_t::null:
      return "null";
    case OrderedJson::value_t::object:
      return "an object";
    case OrderedJson::value_t::array:
      return "an array";
    case OrderedJson::value_t::string:
      return "a string";
    case OrderedJson::value_t::boolean:
      return "a boolean";
    default:
      return "a number";  // binary values are integers past 64 bits
  }
}

[[noreturn]] void wrong_type(const std::string& path, const char* wanted, const OrderedJson& got) {
  throw InputError(path + ": want " + wanted + ", got " + type_name(got));
}

// A value and the path that leads to it. Members that are absent or null read as nullptr.
struct Node {
  const OrderedJson& value;
  std::string path;

  const OrderedJson* member(const char* key) const {
    const auto it = value.find(key);
    return it == value.end() || it->is_null() ? nullptr : &*it;
  }
  std::string path_of(const char* key) const { return path + "." + key; }

  // The string at key; the empty one if it is absent. What is there must be a string.
  std::string text(const char* key) const {
    const OrderedJson* found = member(key);
    if (found == nullptr) return {};
    if (!found->is_string()) wrong_type(path_of(key), "a string", *found);
    return found->get<std::string>();
  }
  std::string needed_text(const char* key) const {
    if (member(key) == nullptr) throw InputError(path_of(key) + ": is missing");
    return text(key);
  }
  bool flag(const char* key) const {
    const OrderedJson* found = member(key);
    if (found == nullptr) return false;
    if (!found->is_boolean()) wrong_type(path_of(key), "a boolean", *found);
    return found->get<bool>();
  }
  Node object(const char* key) const {
    const OrderedJson* found = member(key);
    if (found == nullptr) throw InputError(path_of(key) + ": is missing");
    if (!found->is_object()) wrong_type(path_of(key), "an object", *found);
    return {*found, path_of(key)};
  }
};

// Calls f(node) for every element, which must be an object. Absent arrays are empty.
template <typename F>
void for_each_object(const OrderedJson* array, const std::string& path, F f) {
  if (array == nullptr) return;
  if (!array->is_array()) wrong_type(path, "an array", *array);
  for (size_t i = 0; i < array->size(); ++i) {
    const std::string element = path + "[" + std::to_string(i) + "]";
    if (!(*array)[i].is_object()) wrong_type(element, "an object", (*array)[i]);
    f(Node{(*array)[i], element});
  }
}

std::vector<ToolSpec> read_tools(const OrderedJson* array, const std::string& path) {
  std::vector<ToolSpec> tools;
  for_each_object(array, path, [&](const Node& node) {
    const Node function = node.object("function");
    ToolSpec tool;
    tool.name = function.needed_text("name");
    tool.description = function.text("description");
    const OrderedJson* parameters = function.member("parameters");
    if (parameters != nullptr && !parameters->is_object()) {
      wrong_type(function.path_of("parameters"), "an object", *parameters);
    }
    tool.parameters_json = parameters == nullptr ? "{}" : python_json_dump(*parameters);
    tool.function_json = python_json_dump(function.value);
    tool.strict = function.flag("strict");
    tools.push_back(std::move(tool));
  });
  return tools;
}

std::vector<ToolCall> read_tool_calls(const Node& message) {
  std::vector<ToolCall> calls;
  for_each_object(message.member("tool_calls"), message.path_of("tool_calls"), [&](const Node& n) {
    const Node function = n.object("function");
    ToolCall call;
    call.id = n.text("id");
    call.name = function.needed_text("name");
    const OrderedJson* arguments = function.member("arguments");
    // Clients that keep the arguments parsed send the object itself.
    const bool parsed = arguments != nullptr && arguments->is_object();
    call.arguments = parsed ? python_json_dump(*arguments) : function.needed_text("arguments");
    calls.push_back(std::move(call));
  });
  return calls;
}

ChatRole read_role(const Node& message) {
  const std::string role = message.needed_text("role");
  if (role == "system") return ChatRole::kSystem;
  if (role == "developer") return ChatRole::kDeveloper;
  if (role == "user") return ChatRole::kUser;
  if (role == "assistant") return ChatRole::kAssistant;
  if (role == "tool") return ChatRole::kTool;
  throw InputError(message.path_of("role") + ": '" + printable(role) +
                   "' is none of system, developer, user, assistant, tool");
}

// A string, or an array of {"type": "text", "text": ...} parts, which are joined by newlines.
void read_content(const Node& message, ChatMessage& out) {
  const OrderedJson* content = message.member("content");
  out.has_content = content != nullptr;
  if (content == nullptr) return;
  if (!content->is_array()) {
    out.content = message.text("content");
    return;
  }
  const char* separator = "";
  for_each_object(content, message.path_of("content"), [&](const Node& part) {
    const std::string type = part.needed_text("type");
    if (type != "text") {
      throw InputError(part.path_of("type") + ": '" + printable(type) +
                       "' is not supported, only text is");
    }
    out.content += separator + part.needed_text("text");
    separator = "\n";
  });
}

// The JSON text of the schema. What Python calls false counts as absent, as in the encoder.
std::string read_response_format(const Node& message) {
  const OrderedJson* schema = message.member("response_format");
  if (schema == nullptr) return {};
  if (!schema->is_object()) wrong_type(message.path_of("response_format"), "an object", *schema);
  return schema->empty() ? std::string() : python_json_dump(*schema);
}

ChatMessage read_message(const Node& node) {
  ChatMessage message;
  message.role = read_role(node);
  read_content(node, message);
  message.reasoning_content = node.text("reasoning_content");
  if (message.reasoning_content.empty()) message.reasoning_content = node.text("reasoning");
  message.tool_calls = read_tool_calls(node);
  message.tool_call_id = node.text("tool_call_id");
  message.name = node.text("name");
  message.prefix = node.flag("prefix");
  message.tools = read_tools(node.member("tools"), node.path_of("tools"));
  message.response_format = read_response_format(node);
  if (!message.tool_calls.empty() && message.role != ChatRole::kAssistant) {
    throw InputError(node.path_of("tool_calls") + ": only an assistant message has them");
  }
  if (!message.tools.empty() && message.role != ChatRole::kSystem &&
      message.role != ChatRole::kDeveloper) {
    throw InputError(node.path_of("tools") + ": only a system or developer message has them");
  }
  return message;
}

}  // namespace

ChatRequest parse_messages(std::string_view json_text, const std::string& where) {
  const OrderedJson root = parse_python_json(json_text, where);
  ChatRequest request;
  const OrderedJson* array = &root;
  if (root.is_object()) {
    const Node node{root, where};
    array = node.member("messages");
    if (array == nullptr) throw InputError(where + ": messages: is missing");
    request.tools = read_tools(node.member("tools"), where + ": tools");
  } else if (!root.is_array()) {
    wrong_type(where, "an array of messages or an object", root);
  }
  for_each_object(array, where + ": messages",
                  [&](const Node& node) { request.messages.push_back(read_message(node)); });
  return request;
}

std::vector<ToolSpec> parse_tools(std::string_view json_text, const std::string& where) {
  const OrderedJson root = parse_python_json(json_text, where);
  return read_tools(&root, where + ": tools");
}

}  // namespace tamis
