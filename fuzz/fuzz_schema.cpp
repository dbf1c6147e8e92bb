// Schemas, regular expressions and tools from anywhere. The first byte chooses what the rest is.
// What compiles can be followed: some token may always come unless the text may end, and a token
// that the mask allows is accepted.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "text/chat_markers.h"
#include "text/grammar/constraint.h"
#include "text/tokenizer_vocab.h"

namespace {

using tamis::ConstraintSpec;

constexpr int kSteps = 10;

void require(bool holds) {
  if (!holds) std::abort();
}

// The 256 bytes, a few longer tokens, and markers of the chat formats: small, so that a mask costs
// little and the inputs come to many grammars.
std::string tokenizer_json() {
  const tamis::ByteAlphabet alphabet;
  std::string vocab, merges, added;
  int id = 0;
  const auto add_token = [&](const std::string& key) {
    vocab += (id > 0 ? ",\"" : "\"") + key + "\":" + std::to_string(id);
    ++id;
  };
  for (int b = 0; b < 256; ++b) {
    std::string key;
    tamis::utf8_append(key, alphabet.character(static_cast<uint8_t>(b)));
    add_token(key == "\"" || key == "\\" ? "\\" + key : key);
  }
  const char* separator = "";
  for (const auto& [left, right] :
       {std::pair{"\\\"", ":"}, {"t", "r"}, {"tr", "u"}, {"tru", "e"}, {"{", "\\\""}, {"}", ","}}) {
    add_token(std::string(left) + right);
    merges += std::string(separator) + "\"" + left + " " + right + "\"";
    separator = ",";
  }
  separator = "";
  for (const std::string_view marker :
       {tamis::chat::kThinkEnd, tamis::chat::kToolCallsBegin, tamis::chat::kToolCallsEnd,
        tamis::chat::kToolCallBegin, tamis::chat::kToolCallEnd, tamis::chat::kToolSep}) {
    added += std::string(separator) + "{\"id\":" + std::to_string(id++) + ",\"content\":\"" +
             std::string(marker) +
             "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"
             "\"special\":false}";
    separator = ",";
  }
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + added +
         R"(],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,)"
         R"("trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":)"
         R"("ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":)"
         R"({"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,)"
         R"("end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{)" +
         vocab + R"(},"merges":[)" + merges + "]}}";
}

std::shared_ptr<const tamis::TokenTrie> trie() {
  static const auto t = [] {
    const auto tokenizer = tamis::Tokenizer::parse(tokenizer_json(), "fixed");
    return std::make_shared<const tamis::TokenTrie>(tokenizer, tokenizer.vocab_size());
  }();
  return t;
}

ConstraintSpec spec_of(uint8_t choice, std::string text) {
  ConstraintSpec s;
  s.in_thinking = (choice & 4) != 0;
  s.parallel = (choice & 8) != 0;
  s.format = (choice & 16) != 0 ? tamis::ChatFormat::kV32 : tamis::ChatFormat::kV31;
  switch (choice & 3) {
    case 0:
      s.answer = ConstraintSpec::Answer::kSchema;
      s.text = std::move(text);
      break;
    case 1:
      s.answer = ConstraintSpec::Answer::kRegex;
      s.text = std::move(text);
      break;
    default:
      s.tools = (choice & 3) == 2 ? ConstraintSpec::Tools::kRequired : ConstraintSpec::Tools::kAuto;
      s.declared = {{"f", "", std::move(text), "", /*strict=*/true}};
  }
  return s;
}

void follow(const std::shared_ptr<tamis::Constraint>& constraint, uint64_t state) {
  tamis::Matcher m(constraint);
  for (int i = 0; i < kSteps && !m.finished(); ++i) {
    const auto mask = m.allowed();
    uint64_t any = 0;
    for (const uint64_t word : mask) any |= word;
    require(any != 0 || m.accepting());
    if (any == 0) return;
    // The next allowed token from a place that the input chooses.
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const auto bits = static_cast<uint64_t>(trie()->vocab_size());
    uint64_t token = (state >> 33) % bits;
    while ((mask[token / 64] >> (token % 64) & 1) == 0) token = (token + 1) % bits;
    require(m.accept(static_cast<int32_t>(token)));
    m.commit();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  uint64_t state = 14695981039346656037ULL;
  for (size_t i = 0; i < size; ++i) state = (state ^ data[i]) * 1099511628211ULL;
  try {
    const auto constraint = tamis::compile_constraint(
        spec_of(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1}), trie());
    follow(constraint, state);
  } catch (const tamis::InputError&) {
  }
  return 0;
}
