// Files that must be refused, each with its own message, and what of a file changes an encoding.
#include "text/tokenizer_json.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "text/tokenizer.h"
#include "text/tokenizer_fixture.h"

namespace tamis {
namespace {

std::string refusal(const std::string& text) {
  try {
    read_tokenizer_json(text, "t.json");
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

struct Damage {
  const char* message;  // part of it
  std::function<void(Json&)> apply;
};

void expect_refused(const std::vector<Damage>& damages) {
  for (const Damage& damage : damages) {
    Json json = small_tokenizer_json();
    damage.apply(json);
    const std::string message = refusal(json.dump());
    EXPECT_NE(message.find(damage.message), message.npos)
        << "wanted \"" << damage.message << "\", got: " << message;
    EXPECT_EQ(message.find("t.json: "), 0u) << message;
  }
}

Json& split_step(Json& j, size_t i) { return j["pre_tokenizer"]["pretokenizers"][i]; }

TEST(TokenizerJson, UndamagedIsAccepted) {
  const TokenizerSpec spec = read_tokenizer_json(small_tokenizer_json().dump(), "t.json");
  EXPECT_EQ(spec.id_count, 263);
  EXPECT_EQ(spec.merges.size(), 3u);
  EXPECT_EQ(spec.merges[2].result, 258);
  EXPECT_EQ(spec.added.size(), 5u);
  EXPECT_EQ(spec.byte_ids[' '], ' ');
}

TEST(TokenizerJson, DamagedVocabulary) {
  expect_refused({
      {"model.vocab: \"zz\": id 2147483648 is outside [0, ",
       [](Json& j) { j["model"]["vocab"]["zz"] = 2147483648; }},
      {"model.vocab: \"zz\": id -1 is outside [0, ",
       [](Json& j) { j["model"]["vocab"]["zz"] = -1; }},
      // Larger than the file: only a hole in the ids could need it.
      {"model.vocab: \"zz\": id 900000 is outside [0, ",
       [](Json& j) { j["model"]["vocab"]["zz"] = 900000; }},
      {"model.vocab: \"zz\": want an id, found a fraction",
       [](Json& j) { j["model"]["vocab"]["zz"] = 1.5; }},
      {"model.vocab: \"zz\": want an id, found a string",
       [](Json& j) { j["model"]["vocab"]["zz"] = "1"; }},
      {"model.vocab: \"zz\": want an id, found null",
       [](Json& j) { j["model"]["vocab"]["zz"] = nullptr; }},
      {"model.vocab: \"zz\": want an id, found a boolean",
       [](Json& j) { j["model"]["vocab"]["zz"] = true; }},
      {"model.vocab: \"zz\": want an id, found an object",
       [](Json& j) { j["model"]["vocab"]["zz"] = Json::object(); }},
      {"model.vocab: \"zz\": want an id, found an array",
       [](Json& j) { j["model"]["vocab"]["zz"] = Json::array(); }},
      {"model.vocab: \"ab\" and \"zz\" have the same id 256",
       [](Json& j) { j["model"]["vocab"]["zz"] = 256; }},
      {"model.vocab: no token for the byte 0x21", [](Json& j) { j["model"]["vocab"].erase("!"); }},
      {"model.vocab: want an object", [](Json& j) { j["model"]["vocab"] = Json::array(); }},
      {"model.vocab: want an object", [](Json& j) { j["model"].erase("vocab"); }},
  });
}

TEST(TokenizerJson, DamagedMerges) {
  const auto append = [](Json merge) {
    return [merge](Json& j) { j["model"]["merges"].push_back(merge); };
  };
  expect_refused({
      {"model.merges[3]: \"qq\" is not in model.vocab", append("q q")},
      {"model.merges[3]: \"abq\" is not in model.vocab", append("ab q")},
      {"model.merges[3]: \"a b c\": want two tokens with one space between", append("a b c")},
      {"model.merges[3]: \"ab\": want two tokens with one space between", append("ab")},
      {"model.merges[3]: an empty token", append(" ab")},
      {"model.merges[3]: an empty token", append(Json{"ab", ""})},
      {"model.merges[3]: fewer than two tokens", append(Json::array({"a"}))},
      {"model.merges[3]: more than two tokens", append(Json::array({"a", "b", "c"}))},
      {"model.merges[3]: want \"LEFT RIGHT\" or [LEFT, RIGHT], found a number", append(5)},
      {"model.merges[3]: want \"LEFT RIGHT\" or [LEFT, RIGHT], found an array",
       append(Json::array({Json::array({"a"}), "b"}))},
      {"model.merges[3]: want \"LEFT RIGHT\" or [LEFT, RIGHT], found an object",
       append(Json::object())},
      {"model.merges: want an array", [](Json& j) { j["model"]["merges"] = "a b"; }},
      {"model.merges: want an array", [](Json& j) { j["model"].erase("merges"); }},
  });
}

TEST(TokenizerJson, DamagedAddedTokens) {
  const auto set = [](const char* key, Json value) {
    return [key, value](Json& j) { j["added_tokens"][2][key] = value; };
  };
  expect_refused({
      {"added_tokens[2].id: 2147483648 is outside [0, ", set("id", 2147483648)},
      {"added_tokens[2].id: -7 is outside [0, ", set("id", -7)},
      {"added_tokens[2].id: want an id, found string", set("id", "260")},
      {"added_tokens[2].id: want an id, found number", set("id", 260.5)},
      {"added_tokens[2].id: 97 belongs to another token", set("id", 97)},
      {"added_tokens[2].id: 259 belongs to another token", set("id", 259)},
      {"added_tokens[2].content: is empty", set("content", "")},
      {"added_tokens[2].content: 513 bytes, the limit is 512",
       set("content", std::string(513, 'q'))},
      {"added_tokens[2].content: want a string, found number", set("content", 5)},
      {"added_tokens[2].content: \"<s>\" is there twice",
       [](Json& j) { j["added_tokens"][2] = j["added_tokens"][0]; }},
      {"added_tokens[2].id: \"ab\" is 260 here and 256 in model.vocab", set("content", "ab")},
      {"added_tokens[2].lstrip: true is not supported", set("lstrip", true)},
      {"added_tokens[2].rstrip: true is not supported", set("rstrip", true)},
      {"added_tokens[2].single_word: true is not supported", set("single_word", true)},
      {"added_tokens[2].special: want true or false, found number", set("special", 1)},
      {"added_tokens: \"!\" is the token of one byte",
       [](Json& j) { j["added_tokens"][2]["content"] = "!", j["added_tokens"][2]["id"] = '!'; }},
      {"added_tokens[2]: want an object, found number", [](Json& j) { j["added_tokens"][2] = 5; }},
      {"added_tokens: want an array, found object",
       [](Json& j) { j["added_tokens"] = Json::object(); }},
  });
}

TEST(TokenizerJson, UnknownFeatures) {
  expect_refused({
      {"pre_tokenizer.pretokenizers[0].pattern.Regex: the pattern \"(a+)+\" is not a known one",
       [](Json& j) { split_step(j, 0)["pattern"]["Regex"] = "(a+)+"; }},
      {"pretokenizers[2].pattern.Regex: the pattern",
       [](Json& j) { split_step(j, 2)["pattern"]["Regex"] = std::string(kGpt2Pattern); }},
      {"pretokenizers[0].pattern.Regex: want a string, found nothing",
       [](Json& j) {
         split_step(j, 0)["pattern"] = {{"String", "a"}};
       }},
      {"pretokenizers[1].behavior: want \"Isolated\"",
       [](Json& j) { split_step(j, 1)["behavior"] = "Removed"; }},
      {"pretokenizers[1].invert: want false", [](Json& j) { split_step(j, 1)["invert"] = true; }},
      {"pretokenizers[1].type: want \"Split\"",
       [](Json& j) { split_step(j, 1)["type"] = "Digits"; }},
      {"pretokenizers: 3 steps", [](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(1); }},
      {"pretokenizers: 0 steps",
       [](Json& j) { j["pre_tokenizer"]["pretokenizers"] = Json::array(); }},
      {"pretokenizers[0].pattern.Regex: the pattern \"\\p{N}{1,3}\" is not a known one",
       [](Json& j) {
         j["pre_tokenizer"]["pretokenizers"].erase(1);
         j["pre_tokenizer"]["pretokenizers"].erase(1);
       }},
      {"pretokenizers[3].use_regex: want false",
       [](Json& j) { split_step(j, 3)["use_regex"] = true; }},
      {"pretokenizers[3].add_prefix_space: want false",
       [](Json& j) { split_step(j, 3)["add_prefix_space"] = true; }},
      {"pre_tokenizer.type: \"Metaspace\" is not supported",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}};
       }},
      {"pre_tokenizer.use_regex: want true",
       [](Json& j) { j["pre_tokenizer"] = split_step(j, 3); }},
      {"pre_tokenizer: want an object, found null", [](Json& j) { j["pre_tokenizer"] = nullptr; }},
      {"normalizer: \"NFC\" is not supported",
       [](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       }},
      {"normalizer: want an object, found number", [](Json& j) { j["normalizer"] = 3; }},
      {"decoder.type: want \"ByteLevel\"", [](Json& j) { j["decoder"]["type"] = "WordPiece"; }},
      {"decoder: want an object, found nothing", [](Json& j) { j.erase("decoder"); }},
      {"model.type: want \"BPE\", found \"Unigram\"",
       [](Json& j) { j["model"]["type"] = "Unigram"; }},
      {"model.dropout: want none", [](Json& j) { j["model"]["dropout"] = 0.1; }},
      {"model.end_of_word_suffix: not supported",
       [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }},
      {"model.ignore_merges: want true or false",
       [](Json& j) { j["model"]["ignore_merges"] = "yes"; }},
      {"model: want an object, found nothing", [](Json& j) { j.erase("model"); }},
  });
}

TEST(TokenizerJson, NotTheFormat) {
  EXPECT_NE(refusal("").find("not valid JSON"), std::string::npos);
  EXPECT_NE(refusal("[]").find("want an object"), std::string::npos);
  EXPECT_NE(refusal("{\"model\": {\"vocab\": {\"a\": 0").find("not valid JSON"), std::string::npos);
  EXPECT_NE(refusal("{\"model\":{\"vocab\":{\"\xFF\":0}}}").find("not valid JSON"),
            std::string::npos);
  EXPECT_NE(refusal(std::string(100000, '[')).find("nested deeper than 32"), std::string::npos);
  EXPECT_NE(refusal("{\"model\":1,\"model\":2}").find("duplicate key \"model\""),
            std::string::npos);
  EXPECT_NE(refusal("{\"model\":{\"vocab\":{\"a\":1,\"a\":2}}}").find("\"a\" is there twice"),
            std::string::npos);
}

TEST(TokenizerJson, MessagesShowNoControlBytes) {
  Json json = small_tokenizer_json();
  json["model"]["vocab"]["\x1B[2J"] = -1;
  EXPECT_EQ(refusal(json.dump()).find('\x1B'), std::string::npos);
}

TEST(TokenizerJson, EveryTruncationIsRefused) {
  const std::string whole = small_tokenizer_json().dump();
  for (size_t size = 0; size < whole.size(); size += size < 200 ? 1 : 37) {
    EXPECT_NE(refusal(whole.substr(0, size)), "accepted") << size;
  }
}

TEST(TokenizerJson, MergesMayStandBeforeTheVocabulary) {
  std::string text = small_tokenizer_json().dump();
  // dump() orders keys, so "model" holds merges before type and vocab already.
  ASSERT_LT(text.find("\"merges\""), text.find("\"vocab\""));
  EXPECT_EQ(read_tokenizer_json(text, "t.json").merges.size(), 3u);
}

TEST(TokenizerJson, KeysOfTheModelCountOnlyThere) {
  Json json = small_tokenizer_json();
  json["post_processor"] = {{"vocab", {{"a", "b"}}}, {"model", {{"merges", {1, 2}}}}};
  EXPECT_EQ(refusal(json.dump()), "accepted");
}

TEST(TokenizerJson, MissingFile) {
  EXPECT_THROW(Tokenizer::load("/nonexistent/tokenizer.json"), InputError);
}

}  // namespace
}  // namespace tamis
