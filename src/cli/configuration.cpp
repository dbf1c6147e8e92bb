#include "cli/configuration.h"

#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/json.h"

namespace tamis::cli {
namespace {

constexpr int64_t kMaxFile = 1 << 20;

// The long name without its dashes; empty for what is not configured.
std::string key_of(const CLI::Option& option) {
  const auto& names = option.get_lnames();
  if (names.empty()) return {};
  const std::string& name = names.front();
  return name == "help" || name == "config" || name == "print-config" ? std::string() : name;
}

std::string variable_of(const std::string& key) {
  std::string name = "TAMIS_" + key;
  for (char& c : name) {
    c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

bool takes_several(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

void add_argument(const std::string& key, const std::string& value,
                  std::vector<std::string>& arguments) {
  arguments.push_back("--" + key + "=" + value);
}

std::string text_of(const std::string& where, const toml::node& value) {
  if (const auto* v = value.as_string()) return v->get();
  if (const auto* v = value.as_integer()) return std::to_string(v->get());
  if (const auto* v = value.as_boolean()) return v->get() ? "true" : "false";
  if (const auto* v = value.as_floating_point()) {
    std::ostringstream out;
    out << v->get();
    return out.str();
  }
  throw InputError(where + ": want a string, a number or a boolean");
}

// As TOML has it: numbers and booleans bare, everything else as a string.
std::string toml_value(const std::string& text) {
  const bool number = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos &&
                      (text.size() == 1 || text[0] != '0');
  if (number || text == "true" || text == "false") return text;
  return Json(text).dump();  // what JSON escapes, TOML reads in the same way
}

std::string value_of(const CLI::Option& option) {
  std::vector<std::string> values = option.results();
  if (option.get_expected_max() == 0) return values.empty() ? "false" : toml_value(values.back());
  if (takes_several(option)) {
    std::string out = "[";
    for (const std::string& v : values) out += (out.size() > 1 ? ", " : "") + toml_value(v);
    return out + "]";
  }
  return toml_value(values.empty() ? option.get_default_str() : values.back());
}

}  // namespace

void Configuration::cover(CLI::App& command) {
  command_ = &command;
  command.add_option("--config", file_, "A TOML file with these options; TAMIS_CONFIG");
  command.add_flag("--print-config", print_,
                   "Print every option, its value and where it comes from, and stop");
}

// Values that look like an option of the command count as one: then that one is not configured.
void Configuration::find_given(const std::vector<std::string>& arguments) {
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string& a = arguments[i];
    if (a.size() < 2 || a[0] != '-') continue;
    const std::string name = a[1] == '-' ? a.substr(0, a.find('=')) : a.substr(0, 2);
    const CLI::Option* option = command_->get_option_no_throw(name);
    if (option == nullptr) continue;
    source_[option] = "flag";
    if (name != "--config") continue;
    file_ = a.find('=') != std::string::npos ? a.substr(a.find('=') + 1)
            : i + 1 < arguments.size()       ? arguments[i + 1]
                                             : "";
  }
}

void Configuration::add_environment(std::vector<std::string>& arguments) {
  if (file_.empty()) {
    const char* file = std::getenv("TAMIS_CONFIG");
    if (file != nullptr) file_ = file;
  }
  for (const CLI::Option* option : command_->get_options()) {
    const std::string key = key_of(*option), variable = variable_of(key);
    if (key.empty() || source_.count(option) > 0) continue;
    const char* value = std::getenv(variable.c_str());
    if (value == nullptr || *value == '\0') continue;
    source_[option] = variable;
    if (!takes_several(*option)) {
      add_argument(key, value, arguments);
      continue;
    }
    std::istringstream parts(value);
    for (std::string part; std::getline(parts, part, ',');) add_argument(key, part, arguments);
  }
}

void Configuration::add_file(std::vector<std::string>& arguments) {
  if (file_.empty()) return;
  toml::table table;
  try {
    table = toml::parse(read_text_file(file_, kMaxFile), file_);
  } catch (const toml::parse_error& e) {
    throw InputError(file_ + ": line " + std::to_string(e.source().begin.line) + ": " +
                     printable(std::string(e.description())));
  }
  for (const auto& [name, value] : table) {
    std::string key(name.str());
    std::replace(key.begin(), key.end(), '_', '-');
    const std::string where = file_ + ": " + printable(std::string(name.str()));
    const CLI::Option* option = command_->get_option_no_throw("--" + key);
    if (option == nullptr || key_of(*option).empty()) {
      throw InputError(where + ": is no option; see --help");
    }
    if (source_.count(option) > 0) continue;
    source_[option] = file_;
    const toml::array* list = value.as_array();
    if (list == nullptr) {
      add_argument(key, text_of(where, value), arguments);
      continue;
    }
    if (!takes_several(*option)) throw InputError(where + ": want one value, got an array");
    for (const toml::node& v : *list) add_argument(key, text_of(where, v), arguments);
  }
}

std::vector<std::string> Configuration::extend(std::vector<std::string> arguments) {
  if (command_ == nullptr || arguments.empty() || arguments[0] != command_->get_name()) {
    return arguments;
  }
  find_given(arguments);
  std::vector<std::string> more;
  add_environment(more);
  add_file(more);
  // In front: what follows "--" or an option that waits for its value stays where it is.
  arguments.insert(arguments.begin() + 1, more.begin(), more.end());
  return arguments;
}

std::string Configuration::effective() const {
  std::string out;
  for (const CLI::Option* option : command_->get_options()) {
    const std::string key = key_of(*option);
    if (key.empty()) continue;
    const auto source = source_.find(option);
    std::string value = value_of(*option);
    // An empty default stands for "not given", which a file says by leaving the key out.
    const bool unset = source == source_.end() && value == "\"\"";
    out += (unset ? "# " + key : key + " = " + value) + "  # " +
           (source == source_.end() ? (unset ? "not given" : "default") : source->second) + "\n";
  }
  return out;
}

std::string Configuration::summary() const {
  std::string out;
  for (const CLI::Option* option : command_->get_options()) {
    const auto source = source_.find(option);
    const std::string key = key_of(*option);
    if (key.empty() || source == source_.end()) continue;
    out += (out.empty() ? "" : ", ") + key + " = " + value_of(*option);
    if (source->second != "flag") out += " (" + source->second + ")";
  }
  return out;
}

}  // namespace tamis::cli
