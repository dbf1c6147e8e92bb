// Encodings, decodings and splits recorded with the Hugging Face `tokenizers` library 0.23.2.
//
// tests/golden/tokenizer holds those of a small tokenizer, so that a clone is tested as it is. With
// TAMIS_FIXTURES=.../public the recordings of the full-size tokenizers are read too; their files
// stand in .../tokenizer/NAME/tokenizer.json.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "text/tokenizer.h"
#include "text/tokenizer_split.h"
#include "text/tokenizer_vocab.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

// A recording and the tokenizer it was made with.
struct Recording {
  std::string name;
  fs::path tokenizer, folder;
};

std::vector<Recording> recordings() {
  const fs::path golden = fs::path(TAMIS_SOURCE_DIR) / "tests/golden/tokenizer";
  std::vector<Recording> all = {{"small_bpe", golden / "small_bpe.tokenizer.json", golden}};
  if (const char* fixtures = std::getenv("TAMIS_FIXTURES")) {
    for (const char* name : {"small_bpe", "deepseek_v3", "deepseek_v31"}) {
      all.push_back({name, fs::path(fixtures) / "../tokenizer" / name / "tokenizer.json",
                     fs::path(fixtures) / "tokenizer"});
    }
  }
  return all;
}

std::vector<Json> read_lines(const fs::path& path, size_t wanted) {
  std::ifstream in(path);
  std::vector<Json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(parse_json(line, path));
  EXPECT_EQ(lines.size(), wanted) << path;
  return lines;
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  StreamingDecoder decoder(tokenizer, skip);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.flush();
}

void expect_decodes(const Tokenizer& tokenizer, const Json& pair) {
  const auto ids = pair["ids"].get<std::vector<int32_t>>();
  const auto whole = pair["decoded"].get<std::string>();
  const auto without = pair["decoded_skip_special"].get<std::string>();
  EXPECT_EQ(tokenizer.decode(ids), whole);
  EXPECT_EQ(stream(tokenizer, ids, false), whole);
  EXPECT_EQ(tokenizer.decode(ids, /*skip_special=*/true), without);
  EXPECT_EQ(stream(tokenizer, ids, true), without);
}

TEST(TokenizerGolden, Encode) {
  for (const Recording& r : recordings()) {
    SCOPED_TRACE(r.tokenizer);
    const Tokenizer tokenizer = Tokenizer::load(r.tokenizer);
    for (const Json& pair : read_lines(r.folder / (r.name + ".encode.jsonl"), 300)) {
      const auto text = pair["text"].get<std::string>();
      ASSERT_EQ(text, from_hex(pair["utf8_hex"].get<std::string>()));
      EXPECT_EQ(tokenizer.encode(text, SpecialTokens::kParse),
                pair["ids"].get<std::vector<int32_t>>())
          << pair["text"];
      expect_decodes(tokenizer, pair);
    }
  }
}

TEST(TokenizerGolden, Decode) {
  for (const Recording& r : recordings()) {
    SCOPED_TRACE(r.tokenizer);
    const Tokenizer tokenizer = Tokenizer::load(r.tokenizer);
    for (const Json& pair : read_lines(r.folder / (r.name + ".decode.jsonl"), 60)) {
      expect_decodes(tokenizer, pair);
      EXPECT_EQ(tokenizer.decode(pair["ids"].get<std::vector<int32_t>>()),
                from_hex(pair["decoded_utf8_hex"].get<std::string>()));
    }
  }
}

// The recorded pieces are in the byte-level alphabet.
TEST(TokenizerGolden, Split) {
  const UnicodeClasses classes;
  const ByteAlphabet alphabet;
  const fs::path golden = fs::path(TAMIS_SOURCE_DIR) / "tests/golden/tokenizer";
  for (const Json& pair : read_lines(golden / "pretokenize.jsonl", 120)) {
    std::vector<std::string> wanted, found;
    for (const Json& piece : pair["pieces"]) {
      ASSERT_TRUE(alphabet.append_bytes(piece.get<std::string>(), wanted.emplace_back()));
    }
    split_words(SplitRule::kDeepSeekV3, classes, pair["text"].get<std::string>(),
                [&](std::string_view word) { found.emplace_back(word); });
    EXPECT_EQ(found, wanted) << pair["text"];
  }
}

}  // namespace
}  // namespace tamis
