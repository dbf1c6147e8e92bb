#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "checkpoint/checksum.h"
#include "text/encode_pieces.h"
#include "text/tokenizer.h"
#include "train/input_file.h"
#include "train/token_data.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxFile = int64_t{1} << 30;

constexpr const char* kWantedInputs =
    "want files of text, NAME.jsonl with a \"text\" in each line, or folders of them";

Tokenizer load_tokenizer(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  want_file(path, "--tokenizer: want a folder with a tokenizer, models/tamis-mini for example");
  return Tokenizer::load(path);
}

class Builder {
 public:
  explicit Builder(const DataBuildOptions& options)
      : options_(options), tokenizer_(load_tokenizer(options.tokenizer)) {
    const std::optional<int32_t> end = tokenizer_.token_to_id(options.end_token);
    if (!end) {
      throw InputError(options.tokenizer + ": the tokenizer has no token " + options.end_token +
                       "; name another one");
    }
    end_ = *end;
    if (options.chat) {
      format_ = options.chat_format.empty() ? detect_chat_format(options.tokenizer)
                                            : parse_chat_format(options.chat_format);
    }
    make_folder(options.out, "--out: want a folder that can be written");
    if (fs::exists(options.out + "/" + kDataManifest)) {
      throw InputError(options.out + ": holds data already; choose another folder or empty it");
    }
  }

  void add_file(const std::string& path) {
    const std::string text = read_text_file(path, kMaxFile);
    result_.bytes += static_cast<int64_t>(text.size());
    if (!path.ends_with(".jsonl")) {
      if (options_.chat) throw InputError(path + ": want a .jsonl file with a conversation a line");
      return add_document(text);
    }
    size_t line = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string where = path + ":" + std::to_string(++line);
      const std::string_view own = std::string_view(text).substr(begin, end - begin);
      if (options_.chat) {
        add_conversation(own, where);
      } else {
        add_line(own, where);
      }
      begin = end + 1;
    }
  }

  DataBuildResult finish() {
    write_shard();
    if (result_.tokens == 0) {
      throw InputError(std::string("data: the inputs hold no text; ") + kWantedInputs);
    }
    const Json manifest = {{"format", 1},
                           {"tokenizer", tokenizer_checksum(options_.tokenizer)},
                           {"vocab_size", tokenizer_.vocab_size()},
                           {"documents", result_.documents},
                           {"tokens", result_.tokens},
                           {"answers", options_.chat},
                           {"shards", shards_}};
    write_file_atomically(options_.out + "/" + kDataManifest, manifest.dump(2) + "\n");
    return result_;
  }

 private:
  void add_line(std::string_view line, const std::string& where) {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const Json json = parse_json(line, where);
    if (!json.is_object() || !json.contains("text") || !json["text"].is_string()) {
      throw InputError(where + ": want an object with a string \"text\"");
    }
    add_document(json["text"].get<std::string>());
  }

  void add_document(const std::string& text) {
    if (text.empty()) return;
    if (utf8_first_invalid(text) != std::string_view::npos) {
      ++result_.skipped;
      return;
    }
    std::vector<int32_t> ids = tokenizer_.encode(text, SpecialTokens::kPlain);
    ids.push_back(end_);
    add_tokens(ids);
  }

  void add_tokens(const std::vector<int32_t>& ids, std::vector<uint8_t> answers = {}) {
    begins_.push_back(static_cast<int64_t>(ids_.size()));
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    answers_.insert(answers_.end(), answers.begin(), answers.end());
    ++result_.documents;
    result_.tokens += static_cast<int64_t>(ids.size());
    if (static_cast<int64_t>(ids_.size()) >= options_.shard_tokens) write_shard();
  }

  // The prompt before message `count`, or the conversation up to it, as the model would read it.
  std::vector<int32_t> rendered(const ChatRequest& chat, size_t count, bool prompt, bool thinking) {
    RenderOptions options;
    options.tools = chat.tools;
    options.thinking = thinking;
    options.add_generation_prompt = prompt;
    const std::vector<ChatMessage> messages(chat.messages.begin(),
                                            chat.messages.begin() + static_cast<int64_t>(count));
    return encode_pieces(tokenizer_, render_pieces(format_, messages, options));
  }

  void add_conversation(std::string_view line, const std::string& where) {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const ChatRequest chat = parse_messages(line, where);
    std::vector<int32_t> document;
    std::vector<uint8_t> answers;
    for (size_t i = 0; i < chat.messages.size(); ++i) {
      if (chat.messages[i].role != ChatRole::kAssistant) continue;
      const bool thinking = !chat.messages[i].reasoning_content.empty();
      const std::vector<int32_t> prompt = rendered(chat, i, true, thinking);
      const std::vector<int32_t> turn = rendered(chat, i + 1, false, thinking);
      if (!begins_with(turn, prompt) || turn.size() == prompt.size()) {
        throw InputError(where + ": messages[" + std::to_string(i) +
                         "]: the chat format does not write this answer after its prompt");
      }
      if (!begins_with(prompt, document)) {
        add_tokens(document, std::exchange(answers, {}));
      }
      document = turn;
      answers.resize(prompt.size(), 0);
      answers.resize(turn.size(), 1);
    }
    if (document.empty()) throw InputError(where + ": the conversation has no answer");
    add_tokens(document, answers);
  }

  static bool begins_with(const std::vector<int32_t>& whole, const std::vector<int32_t>& part) {
    return whole.size() >= part.size() && std::equal(part.begin(), part.end(), whole.begin());
  }

  void write_shard() {
    if (ids_.empty()) return;
    std::string number = std::to_string(result_.shards++);
    number.insert(0, 5 - std::min<size_t>(5, number.size()), '0');
    const std::string name = "tokens-" + number + ".safetensors";
    begins_.push_back(static_cast<int64_t>(ids_.size()));
    const auto tokens = static_cast<int64_t>(ids_.size());
    std::vector<TensorSpec> specs = {
        {"documents", DType::kI64, {static_cast<int64_t>(begins_.size())}},
        {"tokens", DType::kI32, {tokens}}};
    if (options_.chat) specs.push_back({"answers", DType::kU8, {tokens}});
    SafetensorsWriter writer(options_.out + "/" + name, specs);
    writer.append_tensor("documents", std::as_bytes(std::span(begins_)));
    writer.append_tensor("tokens", std::as_bytes(std::span(ids_)));
    if (options_.chat) writer.append_tensor("answers", std::as_bytes(std::span(answers_)));
    writer.commit();
    shards_.push_back({{"file", name},
                       {"tokens", ids_.size()},
                       {"checksum", checksum_hex(std::as_bytes(std::span(ids_)))},
                       {"answers_checksum", checksum_hex(std::as_bytes(std::span(answers_)))}});
    ids_.clear();
    answers_.clear();
    begins_.clear();
  }

  const DataBuildOptions& options_;
  Tokenizer tokenizer_;
  int32_t end_ = 0;
  ChatFormat format_ = ChatFormat::kV32;
  std::vector<int32_t> ids_;
  std::vector<uint8_t> answers_;  // of ids_, of conversations alone
  std::vector<int64_t> begins_;
  Json shards_ = Json::array();
  DataBuildResult result_;
};

// All files of the inputs, folders walked in the order of their names.
std::vector<std::string> files_of(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    if (!fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    std::vector<std::string> inside;
    for (const fs::directory_entry& e : fs::recursive_directory_iterator(input)) {
      if (e.is_regular_file() && !e.is_symlink()) inside.push_back(e.path().string());
    }
    std::sort(inside.begin(), inside.end());
    files.insert(files.end(), inside.begin(), inside.end());
  }
  return files;
}

}  // namespace

DataBuildResult build_data(const DataBuildOptions& options,
                           FunctionRef<void(int64_t, int64_t)> progress) {
  Builder builder(options);
  const std::vector<std::string> files = files_of(options.inputs);
  int64_t total = 0, done = 0;
  for (const std::string& file : files) {
    want_file(file, kWantedInputs);  // before hours of work on others
    std::error_code unreadable;      // read_text_file says what is wrong with it
    const auto size = fs::file_size(file, unreadable);
    if (!unreadable) total += static_cast<int64_t>(size);
  }
  for (const std::string& file : files) {
    builder.add_file(file);
    std::error_code gone;
    const auto size = fs::file_size(file, gone);
    if (!gone) done += static_cast<int64_t>(size);
    progress(done, total);
  }
  return builder.finish();
}

}  // namespace tamis
