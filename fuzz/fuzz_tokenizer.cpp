// tokenizer.json and encoding. An input that starts with 'J' is read as a tokenizer.json after that
// byte; any other is text for a small fixed tokenizer.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "text/tokenizer.h"
#include "text/tokenizer_split.h"
#include "text/tokenizer_vocab.h"

namespace {

using tamis::InputError;
using tamis::SpecialTokens;
using tamis::Tokenizer;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_tokenizer: does not hold: %s\n", what);
  std::abort();
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\r') {
      out += "\\r";
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string split_step(std::string_view pattern) {
  return R"({"type":"Split","pattern":{"Regex":)" + quoted(pattern) +
         R"(},"behavior":"Isolated","invert":false},)";
}

// 256 bytes, merges that make "ab", "abab", "  ", "\xE4\xB8", and three added tokens.
std::string fixed_tokenizer() {
  const tamis::ByteAlphabet alphabet;
  const auto key = [&](std::string_view bytes) {
    std::string out;
    for (const char c : bytes) {
      tamis::utf8_append(out, alphabet.character(static_cast<uint8_t>(c)));
    }
    return quoted(out);
  };
  std::string vocab;
  for (int b = 0; b < 256; ++b) {
    vocab += key(std::string(1, static_cast<char>(b))) + ":" + std::to_string(b) + ",";
  }
  vocab += key("ab") + ":256," + key("abab") + ":257," + key("  ") + ":258," + key("\xE4\xB8") +
           ":259," + key("<s>") + ":260";
  std::string merges;
  for (const auto& [left, right] :
       {std::pair{"a", "b"}, {"ab", "ab"}, {" ", " "}, {"\xE4", "\xB8"}}) {
    merges += (merges.empty() ? "[" : ",[") + key(left) + "," + key(right) + "]";
  }
  return R"({"added_tokens":[{"id":260,"content":"<s>","special":true,"normalized":false},)"
         R"({"id":261,"content":"<s>a","normalized":false},{"id":257,"content":"abab"}],)"
         R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[)" +
         split_step(tamis::kDigitsPattern) + split_step(tamis::kCjkPattern) +
         split_step(tamis::kTextPattern) +
         R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},)"
         R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" +
         vocab + "},\"merges\":[" + merges + "]}}";
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  tamis::StreamingDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder.push(id);
    require(tamis::utf8_first_invalid(part) == part.npos, "streaming emits whole characters");
    text += part;
  }
  return text + decoder.flush();
}

void check_ids(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) {
    require(id >= 0 && id < tokenizer.vocab_size(), "ids lie below the vocabulary's size");
  }
  const std::vector<int32_t> some(ids.begin(),
                                  ids.begin() + std::min<int64_t>(std::ssize(ids), 256));
  require(stream(tokenizer, some) == tokenizer.decode(some), "streaming equals decode");
}

void check_text(const Tokenizer& tokenizer, std::string_view text) {
  const bool valid = tamis::utf8_first_invalid(text) == text.npos;
  try {
    const auto plain = tokenizer.encode(text, SpecialTokens::kPlain);
    require(valid, "only UTF-8 is encoded");
    require(tokenizer.decode(plain) == text, "plain text round trip");
    check_ids(tokenizer, plain);
    check_ids(tokenizer, tokenizer.encode(text, SpecialTokens::kParse));
  } catch (const InputError&) {
    require(!valid, "UTF-8 is encoded");
  }
}

void check_fixed(std::string_view text) {
  static const Tokenizer tokenizer = Tokenizer::parse(fixed_tokenizer(), "fixed");
  check_text(tokenizer, text);
  if (tamis::utf8_first_invalid(text) != text.npos) return;
  for (const int32_t id : tokenizer.encode(text, SpecialTokens::kPlain)) {
    require(id != 257 && id < 260, "plain text yields no added token");
  }
  const auto parsed = tokenizer.encode(text, SpecialTokens::kParse);
  require(tokenizer.decode(parsed) == text, "parsed text round trip");
}

void check_file(std::string_view json) {
  try {
    const Tokenizer tokenizer = Tokenizer::parse(json, "tokenizer.json");
    require(tokenizer.vocab_size() <= static_cast<int64_t>(json.size()), "ids within the file");
    check_text(tokenizer, json.substr(0, 512));
    check_text(tokenizer, "The abab  don't 12345 \u4E2D\u6587<s>a \n\n\t x");
  } catch (const InputError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (!input.empty() && input[0] == 'J') {
    check_file(input.substr(1));
  } else {
    check_fixed(input);
  }
  return 0;
}
