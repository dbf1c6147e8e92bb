// Which chat format a checkpoint speaks, from the texts beside its weights.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "text/chat.h"
#include "text/chat_markers.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxFileBytes = 16 << 20;

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw InputError(where + ": " + what + "; name one with --format (v3.1, v3.2-exp, v3.2)");
}

ChatFormat recognise_template(std::string_view text, const std::string& where) {
  if (has(text, chat::kDsml)) return ChatFormat::kV32;
  const bool turns = has(text, chat::kUser) && has(text, chat::kAssistant) &&
                     has(text, chat::kThinkEnd) && has(text, "thinking");
  if (!turns) refuse(where, "its chat template is of no format that is built in");
  const bool tools = has(text, chat::kToolCallsBegin) && has(text, chat::kToolSep);
  if (!tools && has(text, "'<｜Assistant｜></think>'") && has(text, "split('</think>')[-1]")) {
    return ChatFormat::kV31Plain;
  }
  if (tools && has(text, "is_only_sys")) return ChatFormat::kV32Exp;
  if (tools && has(text, "add_generation_prompt and ns.is_last_user")) return ChatFormat::kV31;
  refuse(where, "its chat template resembles DeepSeek-V3.1's but is another");
}

std::string read_if_there(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return {};
  return read_text_file(path.string(), kMaxFileBytes);
}

std::string string_at(const Json& object, const char* key) {
  if (!object.is_object()) return {};
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// chat_template is a text, or an array of {"name", "template"} of which "default" counts.
std::string template_of(const Json& tokenizer_config) {
  if (!tokenizer_config.is_object()) return {};
  const auto it = tokenizer_config.find("chat_template");
  if (it == tokenizer_config.end() || !it->is_array()) {
    return string_at(tokenizer_config, "chat_template");
  }
  for (const Json& entry : *it) {
    if (string_at(entry, "name") == "default") return string_at(entry, "template");
  }
  return {};
}

std::string encoding_script(const fs::path& folder) {
  std::error_code error;
  std::string found;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool script = name.rfind("encoding_", 0) == 0 && it->path().extension() == ".py";
    if (script && (found.empty() || name < found)) found = name;
  }
  return found;
}

}  // namespace

ChatFormat recognise_chat_format(const ChatFormatClues& clues, const std::string& where) {
  if (!clues.encoding_script.empty()) {
    if (clues.encoding_script == "encoding_dsv32.py") return ChatFormat::kV32;
    refuse(where, "its encoder encoding/" + printable(clues.encoding_script) +
                      " is of no format that is built in");
  }
  if (!clues.template_text.empty()) return recognise_template(clues.template_text, where);
  if (clues.model_type == "deepseek_v32") return ChatFormat::kV32;
  const bool others = !clues.model_type.empty() && clues.model_type != "deepseek_v3";
  if (!others && has(clues.tokenizer_config, chat::kDsml)) return ChatFormat::kV32;
  refuse(where, "nothing in it tells the chat format");
}

ChatFormat detect_chat_format(const std::string& model_dir) {
  const fs::path folder = model_dir;
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw InputError(model_dir + ": is not a folder");
  ChatFormatClues clues;
  clues.encoding_script = encoding_script(folder / "encoding");
  clues.template_text = read_if_there(folder / "chat_template.jinja");
  const std::string tokenizer = read_if_there(folder / "tokenizer_config.json");
  if (!tokenizer.empty()) {
    const Json parsed = parse_json(tokenizer, (folder / "tokenizer_config.json").string());
    if (clues.template_text.empty()) clues.template_text = template_of(parsed);
    clues.tokenizer_config = parsed.dump();
  }
  const std::string config = read_if_there(folder / "config.json");
  if (!config.empty()) {
    clues.model_type =
        string_at(parse_json(config, (folder / "config.json").string()), "model_type");
  }
  return recognise_chat_format(clues, model_dir);
}

}  // namespace tamis
