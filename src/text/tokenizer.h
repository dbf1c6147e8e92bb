// The byte-level BPE tokenizer of a checkpoint: text to ids and back, exactly as the Hugging Face
// `tokenizers` library does with the same tokenizer.json.
//
//   const Tokenizer tokenizer = Tokenizer::load("model/tokenizer.json");
//   std::vector<int32_t> ids = tokenizer.encode("Hello", SpecialTokens::kPlain);
//   std::string text = tokenizer.decode(ids);
//
// Encoding takes time linear in the text (n log n inside one word) and a small constant stack. No
// token is added that the text does not have (no beginning-of-sentence).
//
// A Tokenizer is immutable: threads may share one, copies are cheap.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tamis {

enum class SpecialTokens {
  kParse,  // added tokens in the text become their ids: for text that a chat format rendered
  kPlain,  // added tokens are ordinary text and no id of one is produced: for text from a user
};

class Tokenizer {
 public:
  // InputError naming the file, the field, what is wanted and what was found. Only files whose
  // split rules are known here are accepted (tokenizer_split.h).
  static Tokenizer load(const std::string& path_to_tokenizer_json);
  static Tokenizer parse(std::string_view json, const std::string& where);

  // InputError if text is not UTF-8 (the message holds the offset, not the bytes) or is 2 GiB or
  // longer.
  std::vector<int32_t> encode(std::string_view text, SpecialTokens mode) const;

  // Bytes that are not UTF-8 become U+FFFD, one for each maximal invalid part. skip_special leaves
  // out the tokens that the file calls special. InputError naming an id that no token has.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // The bytes a token stands for, which need not be whole characters. InputError as decode.
  std::string token_bytes(int32_t id) const;

  // Largest id + 1. There may be ids below it that no token has.
  int64_t vocab_size() const;

  // The id of a token spelled as in the file: an added token's text, or a key of the vocabulary
  // (where "\u0120" stands for a space).
  std::optional<int32_t> token_to_id(std::string_view token) const;

  // Whether the file calls the token special; false for ids that no token has.
  bool is_special(int32_t id) const;
  // Whether the token stands for bytes of text alone: neither added to the vocabulary nor missing.
  bool is_ordinary(int32_t id) const;

 private:
  friend class StreamingDecoder;
  struct State;

  explicit Tokenizer(std::shared_ptr<const State> state);
  std::string_view bytes_of(int32_t id) const;

  std::shared_ptr<const State> state_;
};

// Decodes ids one at a time and never emits part of a character. All that push() and flush()
// return, joined, is what decode() returns for the same ids.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(Tokenizer tokenizer, bool skip_special = false);

  // The text that is complete now; up to three bytes of a character that has only begun are held
  // back. InputError as decode; the state is then unchanged.
  std::string push(int32_t id);

  // The end: what is held back is an incomplete character, U+FFFD, or nothing. Ready for reuse.
  std::string flush();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string held_;
};

}  // namespace tamis
