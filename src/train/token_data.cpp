#include "train/token_data.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checksum.h"
#include "train/input_file.h"
#include "train/random.h"

namespace tamis {
namespace {

constexpr int64_t kMaxManifest = 64 << 20;

// The field of a JSON object; InputError naming it if it is not there or of another kind.
template <typename T>
T field(const Json& object, const char* key, const std::string& where) {
  try {
    return object.at(key).get<T>();
  } catch (const Json::exception&) {
    throw InputError(where + ": " + key + " is missing or of another type");
  }
}

int64_t read_i64(const std::byte* p) {
  int64_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

const TensorInfo& tensor_of(const SafetensorsFile& file, const char* name, DType dtype) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr || info->dtype != dtype || info->shape.rank() != 1) {
    throw InputError(file.path() + ": want " + name + " as " + std::string(dtype_name(dtype)) +
                     " with one dimension");
  }
  return *info;
}

}  // namespace

std::string tokenizer_checksum(const std::string& folder) {
  const std::string text = read_text_file(folder + "/tokenizer.json", 256 << 20);
  return checksum_hex(std::as_bytes(std::span(text)));
}

TokenData::TokenData(const std::string& folder) {
  const std::string path = folder + "/" + kDataManifest;
  if (!std::filesystem::exists(path)) {
    throw InputError(folder + ": no data.json; `tamis data build` makes such a folder");
  }
  const std::string text = read_text_file(path, kMaxManifest);
  const Json json = parse_json(text, path);
  if (field<int64_t>(json, "format", path) != 1) throw InputError(path + ": want format 1");
  checksum_ = checksum_hex(std::as_bytes(std::span(text)));
  tokenizer_ = field<std::string>(json, "tokenizer", path);
  vocab_size_ = field<int64_t>(json, "vocab_size", path);
  has_answers_ = json.contains("answers") && field<bool>(json, "answers", path);
  for (const Json& entry : field<Json>(json, "shards", path)) {
    const auto name = field<std::string>(entry, "file", path);
    if (name.find('/') != std::string::npos) {
      throw InputError(path + ": " + printable(name) + ": want a file of this folder");
    }
    want_file(folder + "/" + name,
              "data.json of the folder lists it; make the folder anew with `tamis data build`");
    open(folder + "/" + name, field<int64_t>(entry, "tokens", path));
  }
  documents_.push_back(tokens_);
  for (int64_t i = 0; i < tokens_; ++i) {
    if (const int32_t id = token(i); id < 0 || id >= vocab_size_) {
      throw InputError(folder + ": token " + std::to_string(i) + " is " + std::to_string(id) +
                       ", the vocabulary has " + std::to_string(vocab_size_));
    }
  }
}

void TokenData::open(const std::string& path, int64_t want) {
  Shard shard;
  shard.file = std::make_unique<SafetensorsFile>(path);
  const TensorInfo& tokens = tensor_of(*shard.file, "tokens", DType::kI32);
  const TensorInfo& documents = tensor_of(*shard.file, "documents", DType::kI64);
  shard.begin = tokens_;
  shard.count = tokens.shape[0];
  if (shard.count != want) {
    throw InputError(path + ": " + std::to_string(shard.count) +
                     " tokens, data.json says otherwise");
  }
  shard.tokens = shard.file->tensor(tokens).data;
  if (has_answers_) {
    const TensorInfo& answers = tensor_of(*shard.file, "answers", DType::kU8);
    if (answers.shape[0] != want) throw InputError(path + ": answers of another length");
    shard.answers = shard.file->tensor(answers).data;
  }
  const std::byte* begins = shard.file->tensor(documents).data;
  int64_t last = 0;
  for (int64_t i = 0; i + 1 < documents.shape[0]; ++i) {
    const int64_t begin = read_i64(begins + i * 8);
    if (begin < last || begin >= shard.count) {
      throw InputError(path + ": documents are not in order");
    }
    documents_.push_back(shard.begin + (last = begin));
  }
  tokens_ += shard.count;
  shards_.push_back(std::move(shard));
}

const TokenData::Shard& TokenData::shard_of(int64_t position) const {
  size_t s = shards_.size() - 1;
  while (shards_[s].begin > position) --s;
  return shards_[s];
}

int32_t TokenData::token(int64_t position) const {
  const Shard& s = shard_of(position);
  int32_t id;
  std::memcpy(&id, s.tokens + (position - s.begin) * 4, sizeof(id));
  return id;
}

bool TokenData::is_answer(int64_t position) const {
  const Shard& s = shard_of(position);
  return s.answers[position - s.begin] != std::byte{0};
}

void TokenData::append_documents(uint64_t seed, int64_t number, int64_t length,
                                 MicroBatch& batch) const {
  if (!has_answers_) throw UsageError("train: the data has no answers");
  Random random(seed, static_cast<uint64_t>(number));
  if (batch.begins.empty()) batch.begins.push_back(0);
  const auto documents = static_cast<int64_t>(documents_.size()) - 1;
  for (int64_t left = length; left > 0;) {
    const auto d = static_cast<size_t>(random.below(documents));
    const int64_t begin = documents_[d];
    int64_t end = documents_[d + 1];
    if (end - begin > left && left < length) break;
    end = std::min(end, begin + left);
    for (int64_t i = begin; i < end; ++i) {
      batch.ids.push_back(token(i));
      batch.targets.push_back(i + 1 < end && is_answer(i + 1) ? token(i + 1) : -1);
    }
    left -= end - begin;
    batch.begins.push_back(batch.tokens());
  }
}

void TokenData::append(uint64_t seed, int64_t number, int64_t length, MicroBatch& batch) const {
  if (length >= tokens_) {
    throw UsageError("train: sequences of " + std::to_string(length) +
                     " tokens need more data than " + std::to_string(tokens_) + " tokens");
  }
  Random random(seed, static_cast<uint64_t>(number));
  const int64_t start = random.below(tokens_ - length);
  if (batch.begins.empty()) batch.begins.push_back(0);
  auto next = std::upper_bound(documents_.begin(), documents_.end(), start);
  for (int64_t i = start; i < start + length; ++i) {
    const bool ends = i + 1 == *next;  // the next token is another document's
    batch.ids.push_back(token(i));
    batch.targets.push_back(ends ? -1 : token(i + 1));
    if (ends) ++next;
    if (ends || i + 1 == start + length) batch.begins.push_back(batch.tokens());
  }
}

}  // namespace tamis
