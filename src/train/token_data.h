// Text as token shards on disk, and the batches that training draws from them.
//
// A data folder holds data.json and tokens-00000.safetensors, ...: `tokens` I32 [n], the documents
// one after the other, each ended by the end-of-text token, and `documents` I64 [count + 1], where
// each begins in its shard. Folders of conversations have `answers` U8 [n] besides: 1 for the
// tokens that an assistant wrote. data.json names the shards, their sizes and checksums, and the
// checksum of the tokenizer.json that made them.
//
// A batch is a function of the seed and the number of its sequence, nothing else: a window of the
// tokens that starts at a random place, or whole documents drawn at random. Two runs with one seed
// see the same bytes, and a run that goes on from the middle needs no state of a loader.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "checkpoint/safetensors.h"
#include "train/model.h"

namespace tamis {

inline constexpr const char* kDataManifest = "data.json";
inline constexpr const char* kEndToken = "<｜end▁of▁sentence｜>";

struct DataBuildOptions {
  std::string tokenizer;  // folder with tokenizer.json
  std::string out;        // folder, made if absent; must not hold a data.json yet
  // Files, or folders whose files are taken in the order of their names. NAME.jsonl has a document
  // in the field "text" of each line; any other file is one document.
  std::vector<std::string> inputs;
  // Conversations: each line of NAME.jsonl is an array of messages, or an object with "messages"
  // and perhaps "tools", as text/chat.h reads them; they are written in the format of the
  // tokenizer's folder unless chat_format names one, and the answers are marked. An answer whose
  // turn the format writes otherwise when others follow, with its reasoning left out, becomes a
  // document of its own.
  bool chat = false;
  std::string chat_format;
  std::string end_token = kEndToken;
  int64_t shard_tokens = 64 << 20;
};

struct DataBuildResult {
  int64_t documents = 0, tokens = 0, bytes = 0, shards = 0, skipped = 0;
};

// InputError if a file cannot be read, a line of JSON is not an object with a text, or nothing is
// left; text that is not UTF-8 is skipped and counted, as whole documents. progress(done, total)
// counts bytes of input.
DataBuildResult build_data(const DataBuildOptions& options,
                           FunctionRef<void(int64_t, int64_t)> progress);

// The checksum by which data knows its tokenizer.
std::string tokenizer_checksum(const std::string& folder);

class TokenData {
 public:
  // Maps the shards and checks sizes and ids. InputError naming the file.
  explicit TokenData(const std::string& folder);

  int64_t tokens() const { return tokens_; }
  int64_t vocab_size() const { return vocab_size_; }  // of the tokenizer
  const std::string& tokenizer() const { return tokenizer_; }
  // Of data.json: two folders with the same are the same tokens.
  const std::string& checksum() const { return checksum_; }

  // Appends the sequence `number` of `length` tokens to a batch, cut into its documents, which do
  // not see each other. A document's last token and the window's end predict the next token too;
  // only a token whose successor starts another document has no target. UsageError unless
  // length < tokens().
  void append(uint64_t seed, int64_t number, int64_t length, MicroBatch& batch) const;

  bool has_answers() const { return has_answers_; }
  // The same of whole documents, drawn at random until the next has no room; only tokens of answers
  // are targets. A document longer than `length` is cut. UsageError without answers.
  void append_documents(uint64_t seed, int64_t number, int64_t length, MicroBatch& batch) const;

 private:
  struct Shard {
    std::unique_ptr<SafetensorsFile> file;
    const std::byte* tokens = nullptr;
    const std::byte* answers = nullptr;
    int64_t begin = 0, count = 0;
  };
  void open(const std::string& path, int64_t tokens);
  const Shard& shard_of(int64_t position) const;
  int32_t token(int64_t position) const;
  bool is_answer(int64_t position) const;

  std::vector<Shard> shards_;
  std::vector<int64_t> documents_;  // where documents begin, over all shards, and the end
  int64_t tokens_ = 0, vocab_size_ = 0;
  std::string tokenizer_, checksum_;
  bool has_answers_ = false;
};

}  // namespace tamis
