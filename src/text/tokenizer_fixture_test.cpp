#include "text/tokenizer_fixture.h"

#include <nlohmann/json.hpp>

#include "base/json.h"
#include "base/utf8.h"
#include "text/tokenizer_split.h"
#include "text/tokenizer_vocab.h"

namespace tamis {
namespace {

Json added(int id, const char* content, bool special, bool normalized) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

Json split(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", std::string(pattern)}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

}  // namespace

Json small_tokenizer_json() {
  const ByteAlphabet alphabet;
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    std::string key;
    utf8_append(key, alphabet.character(static_cast<uint8_t>(byte)));
    vocab[key] = byte;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["\u0120a"] = 258;
  vocab["<s>"] = 259;
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {added(259, "<s>", true, false), added(257, "abc", false, false),
            added(260, "<x>", false, false), added(261, "<x>y", false, false),
            added(262, "x>y<", false, true)}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {split(kDigitsPattern), split(kCjkPattern), split(kTextPattern), byte_level}}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", {"a b", "ab c", Json::array({"\u0120", "a"})}}}}};
}

}  // namespace tamis
