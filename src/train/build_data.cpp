#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "checkpoint/checksum.h"
#include "text/tokenizer.h"
#include "train/token_data.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxFile = int64_t{1} << 30;

class Builder {
 public:
  explicit Builder(const DataBuildOptions& options)
      : options_(options), tokenizer_(Tokenizer::load(options.tokenizer + "/tokenizer.json")) {
    const std::optional<int32_t> end = tokenizer_.token_to_id(options.end_token);
    if (!end) {
      throw InputError(options.tokenizer + ": the tokenizer has no token " + options.end_token +
                       "; name another one");
    }
    end_ = *end;
    fs::create_directories(options.out);
    if (fs::exists(options.out + "/" + kDataManifest)) {
      throw InputError(options.out + ": holds data already; choose another folder or empty it");
    }
  }

  void add_file(const std::string& path) {
    const std::string text = read_text_file(path, kMaxFile);
    result_.bytes += static_cast<int64_t>(text.size());
    if (!path.ends_with(".jsonl")) return add_document(text);
    size_t line = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      add_line(std::string_view(text).substr(begin, end - begin),
               path + ":" + std::to_string(++line));
      begin = end + 1;
    }
  }

  DataBuildResult finish() {
    write_shard();
    if (result_.tokens == 0) throw InputError("data: the inputs hold no text");
    const Json manifest = {{"format", 1},
                           {"tokenizer", tokenizer_checksum(options_.tokenizer)},
                           {"vocab_size", tokenizer_.vocab_size()},
                           {"documents", result_.documents},
                           {"tokens", result_.tokens},
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
    begins_.push_back(static_cast<int64_t>(ids_.size()));
    const std::vector<int32_t> ids = tokenizer_.encode(text, SpecialTokens::kPlain);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    ids_.push_back(end_);
    ++result_.documents;
    result_.tokens += static_cast<int64_t>(ids.size()) + 1;
    if (static_cast<int64_t>(ids_.size()) >= options_.shard_tokens) write_shard();
  }

  void write_shard() {
    if (ids_.empty()) return;
    std::string number = std::to_string(result_.shards++);
    number.insert(0, 5 - std::min<size_t>(5, number.size()), '0');
    const std::string name = "tokens-" + number + ".safetensors";
    begins_.push_back(static_cast<int64_t>(ids_.size()));
    const TensorSpec specs[] = {{"documents", DType::kI64, {static_cast<int64_t>(begins_.size())}},
                                {"tokens", DType::kI32, {static_cast<int64_t>(ids_.size())}}};
    SafetensorsWriter writer(options_.out + "/" + name, specs);
    writer.append_tensor("documents", std::as_bytes(std::span(begins_)));
    writer.append_tensor("tokens", std::as_bytes(std::span(ids_)));
    writer.commit();
    shards_.push_back({{"file", name},
                       {"tokens", ids_.size()},
                       {"checksum", checksum_hex(std::as_bytes(std::span(ids_)))}});
    ids_.clear();
    begins_.clear();
  }

  const DataBuildOptions& options_;
  Tokenizer tokenizer_;
  int32_t end_ = 0;
  std::vector<int32_t> ids_;
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
    std::error_code unreadable;  // read_text_file says what is wrong with it
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
