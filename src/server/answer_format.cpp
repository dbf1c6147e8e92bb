#include "server/answer_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "server/api_error.h"
#include "text/python_json.h"

namespace tamis::server {
namespace {

using Answer = ConstraintSpec::Answer;

constexpr size_t kMaxChoices = 1000;

// A request may say it once.
void set(const Fields& f, const char* key, Call& call, Answer answer, std::string text) {
  if (!call.answer_field.empty()) {
    f.refuse(key, "the answer's form is already given by " + call.answer_field);
  }
  call.answer.answer = answer;
  call.answer.text = std::move(text);
  call.answer_field = f.path_of(key);
}

// A schema as JSON, or as the text of it.
void set_schema(Fields& f, const char* key, Call& call) {
  const OrderedJson* schema = f.find(key);
  if (schema == nullptr) return;
  if (!schema->is_object() && !schema->is_boolean() && !schema->is_string()) {
    f.refuse(key, fmt::format("want a JSON schema, got {}", type_name(*schema)));
  }
  set(f, key, call, Answer::kSchema,
      schema->is_string() ? schema->get<std::string>() : python_json_dump(*schema));
}

void set_regex(Fields& f, const char* key, Call& call) {
  if (auto pattern = f.text(key)) set(f, key, call, Answer::kRegex, std::move(*pattern));
}

// One of several texts: an expression with every sign of it quoted.
void set_choice(Fields& f, const char* key, Call& call) {
  const std::vector<std::string> choices = f.texts(key, kMaxChoices);
  if (choices.empty()) return;
  std::string pattern;
  for (const std::string& choice : choices) {
    if (!pattern.empty()) pattern += '|';
    for (const char c : choice) {
      const bool sign = std::string_view(R"(\^$.|?*+()[]{}/-)").find(c) != std::string_view::npos;
      if (sign) pattern += '\\';
      pattern += c;
    }
  }
  set(f, key, call, Answer::kRegex, std::move(pattern));
}

void set_object(Fields& f, const char* key, Call& call) {
  if (f.flag(key).value_or(false)) set(f, key, call, Answer::kJsonObject, {});
}

// {"type": "json_schema", "json_schema": {"name", "schema", "strict"}}, or the schema beside the
// type. "strict": false asks for less than is given here anyway.
void read_json_schema(Fields& o, Call& call) {
  const OrderedJson* inner = o.object("json_schema");
  if (inner == nullptr) {
    o.ignore({"name", "description"});
    o.flag("strict");
    set_schema(o, "schema", call);
    if (call.answer_field.empty()) o.refuse("json_schema", "is missing");
    return;
  }
  Fields s(*inner, o.path_of("json_schema"));
  s.text("name");
  s.text("description");
  s.flag("strict");
  set_schema(s, "schema", call);
  if (call.answer_field.empty()) s.refuse("schema", "is missing");
  s.no_others();
}

}  // namespace

void read_text_format(Fields& f, const char* key, Call& call) {
  const OrderedJson* format = f.object(key);
  if (format == nullptr) return;
  Fields o(*format, f.path_of(key));
  const std::string type = o.text("type").value_or("");
  if (type == "json_object") {
    // A schema beside it, as llama.cpp has it, says which objects.
    set_schema(o, "schema", call);
    if (call.answer_field.empty()) set(f, key, call, Answer::kJsonObject, {});
  } else if (type == "json_schema") {
    read_json_schema(o, call);
  } else if (type == "regex") {
    set_regex(o, "pattern", call);
    if (call.answer_field.empty()) o.refuse("pattern", "is missing");
  } else if (type != "text") {
    o.refuse("type", "want text, json_object, json_schema or regex");
  }
  o.no_others();
}

namespace {

std::string tool_name(const Fields& f, const OrderedJson& tool, const std::string& path) {
  if (!tool.is_object()) f.refuse(path, fmt::format("want an object, got {}", type_name(tool)));
  Fields t(tool, f.path_of(path));
  if (t.text("type").value_or("") != "function") t.refuse("type", "want function");
  const OrderedJson* function = t.object("function");
  std::optional<std::string> name;
  if (function != nullptr) {
    Fields n(*function, t.path_of("function"));
    name = n.text("name");
    n.no_others();
  } else {
    name = t.text("name");
  }
  t.no_others();
  if (!name) t.refuse("function.name", "is missing");
  return *name;
}

// The names go into the model's markup as they are.
bool is_tool_name(std::string_view name) {
  const auto fits = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           std::string_view("_-.:/").find(c) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= 128 && std::all_of(name.begin(), name.end(), fits);
}

// {"type": "allowed_tools", "mode", "tools"}, with or without OpenAI's inner object.
ToolChoice read_allowed_tools(const Fields& f, const OrderedJson& choice) {
  Fields outer(choice, f.path_of("tool_choice"));
  outer.ignore({"type"});
  const OrderedJson* nested = outer.object("allowed_tools");
  Fields o(nested == nullptr ? choice : *nested,
           nested == nullptr ? f.path_of("tool_choice") : outer.path_of("allowed_tools"));
  if (nested != nullptr) outer.no_others();
  o.ignore({"type"});
  ToolChoice out;
  const std::string mode = o.text("mode").value_or("auto");
  if (mode != "auto" && mode != "required") o.refuse("mode", "want auto or required");
  if (mode == "required") out.mode = ToolChoice::Mode::kRequired;
  const OrderedJson* tools = o.array("tools");
  o.no_others();
  if (tools == nullptr || tools->empty()) o.refuse("tools", "want at least one tool");
  for (const OrderedJson& tool : *tools) {
    out.names.push_back(tool_name(o, tool, fmt::format("tools[{}]", out.names.size())));
  }
  return out;
}

}  // namespace

void read_answer_format(Fields& f, Call& call) {
  read_text_format(f, "response_format", call);
  if (const OrderedJson* outputs = f.object("structured_outputs")) {
    Fields o(*outputs, f.path_of("structured_outputs"));
    set_schema(o, "json", call);
    set_regex(o, "regex", call);
    set_choice(o, "choice", call);
    set_object(o, "json_object", call);
    o.no_others();
  }
  set_schema(f, "guided_json", call);
  set_regex(f, "guided_regex", call);
  set_choice(f, "guided_choice", call);
  set_schema(f, "json_schema", call);
  set_regex(f, "regex", call);
}

ToolChoice read_tool_choice(Fields& f) {
  const OrderedJson* choice = f.find("tool_choice");
  using Mode = ToolChoice::Mode;
  if (choice == nullptr || *choice == "auto") return {};
  if (*choice == "none") return {Mode::kNone, {}};
  if (*choice == "required") return {Mode::kRequired, {}};
  if (!choice->is_object()) {
    f.refuse("tool_choice", "want none, auto, required or the name of a function");
  }
  if (const auto type = choice->find("type"); type != choice->end() && *type == "allowed_tools") {
    return read_allowed_tools(f, *choice);
  }
  return {Mode::kRequired, {tool_name(f, *choice, "tool_choice")}};
}

void apply_tool_choice(const ToolChoice& choice, const ChatPrompt& chat, Call& call) {
  if (choice.mode == ToolChoice::Mode::kNone) return;
  std::vector<ToolSpec> declared = chat.tools;
  for (const ChatMessage& m : chat.messages) {
    declared.insert(declared.end(), m.tools.begin(), m.tools.end());
  }
  for (size_t i = 0; i < declared.size(); ++i) {
    if (!is_tool_name(declared[i].name)) {
      throw ApiError(400,
                     "tools: '" + printable(declared[i].name, 64) +
                         "': want a name of 1 to 128 letters, digits, _ - . : /",
                     "tools");
    }
    const auto twice = std::find_if(declared.begin(), declared.begin() + static_cast<int64_t>(i),
                                    [&](auto& t) { return t.name == declared[i].name; });
    if (twice != declared.begin() + static_cast<int64_t>(i)) {
      throw ApiError(400, "tools: '" + printable(declared[i].name, 64) + "' is declared twice",
                     "tools");
    }
  }
  for (const std::string& name : choice.names) {
    const auto named = [&](const ToolSpec& t) { return t.name == name; };
    if (std::none_of(declared.begin(), declared.end(), named)) {
      throw ApiError(400, "tool_choice: '" + printable(name, 64) + "' is not among the tools",
                     "tool_choice");
    }
  }
  if (!choice.names.empty()) {
    std::erase_if(declared, [&](const ToolSpec& t) {
      return std::find(choice.names.begin(), choice.names.end(), t.name) == choice.names.end();
    });
  }
  const bool required = choice.mode == ToolChoice::Mode::kRequired;
  if (declared.empty()) {
    if (required) throw ApiError(400, "tool_choice: no tool is declared", "tool_choice");
    return;
  }
  call.answer.tools = required ? ConstraintSpec::Tools::kRequired : ConstraintSpec::Tools::kAuto;
  call.answer.declared = std::move(declared);
}

}  // namespace tamis::server
