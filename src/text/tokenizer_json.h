// Reads tokenizer.json (the Hugging Face format) of byte-level BPE tokenizers. The file is not
// believed: every field that changes an encoding is checked, each failure has its own message,
// and memory stays within a small multiple of the file.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_bpe.h"
#include "text/tokenizer_split.h"
#include "text/tokenizer_vocab.h"

namespace tamis {

struct AddedToken {
  std::string content;
  int32_t id;
  bool normalized;  // found in a second pass, after the others
  bool special;
};

struct TokenizerSpec {
  KeyTable vocab;  // model.vocab
  std::vector<AddedToken> added;
  std::vector<BytePairEncoder::Merge> merges;
  std::array<int32_t, 256> byte_ids;  // id of the token that is this one byte
  SplitRule split = SplitRule::kDeepSeekV3;
  bool ignore_merges = false;  // a word that is a token becomes it, whatever the merges say
  int64_t id_count = 0;        // largest id + 1
};

// InputError "WHERE: ..." if the text is not JSON, is not such a tokenizer, uses a feature or a
// pattern that is not known here, or contradicts itself. truncation, padding and post_processor
// are not read: they do not change what a text without added special tokens encodes to.
TokenizerSpec read_tokenizer_json(std::string_view json, const std::string& where);

}  // namespace tamis
