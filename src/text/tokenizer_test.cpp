#include "text/tokenizer.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <rapidcheck/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/tokenizer_fixture.h"
#include "text/tokenizer_split.h"

namespace tamis {
namespace {

using Ids = std::vector<int32_t>;

Tokenizer small(const std::function<void(Json&)>& change = [](Json&) {}) {
  Json json = small_tokenizer_json();
  change(json);
  return Tokenizer::parse(json.dump(), "small");
}

const Tokenizer& trained() {
  static const Tokenizer tokenizer =
      Tokenizer::load(TAMIS_SOURCE_DIR "/tests/golden/tokenizer/small_bpe.tokenizer.json");
  return tokenizer;
}

Ids parse(const Tokenizer& t, std::string_view text) {
  return t.encode(text, SpecialTokens::kParse);
}
Ids plain(const Tokenizer& t, std::string_view text) {
  return t.encode(text, SpecialTokens::kPlain);
}

std::string stream(const Tokenizer& tokenizer, const Ids& ids) {
  StreamingDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_EQ(utf8_first_invalid(part), std::string_view::npos);
    text += part;
  }
  return text + decoder.flush();
}

TEST(Tokenizer, AddedTokensLeftmostLongestNormalizedLast) {
  const Tokenizer t = small();
  EXPECT_EQ(parse(t, ""), Ids{});
  EXPECT_EQ(parse(t, "<s>"), Ids{259});
  EXPECT_EQ(parse(t, "a<s><s>b"), (Ids{'a', 259, 259, 'b'}));
  EXPECT_EQ(parse(t, "<x>y"), Ids{261});
  EXPECT_EQ(parse(t, "<x>z"), (Ids{260, 'z'}));
  // "x>y<" stands first, but is looked for only in what the others leave.
  EXPECT_EQ(parse(t, "x>y<s>"), (Ids{'x', '>', 'y', 259}));
  EXPECT_EQ(parse(t, "x>y<t"), (Ids{262, 't'}));
  EXPECT_EQ(parse(t, "<x"), (Ids{'<', 'x'}));
}

TEST(Tokenizer, PlainTextNeverBecomesAnAddedToken) {
  const Tokenizer t = small();
  EXPECT_EQ(plain(t, "<s>"), (Ids{'<', 's', '>'}));
  EXPECT_EQ(plain(t, "x>y<"), (Ids{'x', '>', 'y', '<'}));
  // "abc" is reached by merges too: plain text stops before it.
  EXPECT_EQ(plain(t, "abc"), (Ids{256, 'c'}));
  EXPECT_EQ(parse(t, "abc"), Ids{257});
}

TEST(Tokenizer, IgnoreMergesTakesWholeWords) {
  const auto no_merges = [](Json& j) {
    j["model"]["ignore_merges"] = true;
    j["model"]["merges"] = Json::array();
  };
  const Tokenizer t = small(no_merges);
  EXPECT_EQ(parse(t, "ab a abd"), (Ids{256, 258, ' ', 'a', 'b', 'd'}));
  EXPECT_EQ(plain(t, "abc"), (Ids{'a', 'b', 'c'}));
}

// "!a" is one word of the DeepSeek-V3 rule and two of GPT-2's.
TEST(Tokenizer, SplitRuleOfTheFile) {
  const auto join = [](Json& j) {
    j["model"]["vocab"]["!a"] = 263;
    j["model"]["merges"].push_back("! a");
  };
  EXPECT_EQ(parse(small(join), "!a"), Ids{263});
  const auto join_gpt2 = [&](Json& j) {
    join(j);
    j["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  };
  EXPECT_EQ(parse(small(join_gpt2), "!a"), (Ids{'!', 'a'}));
  // GLM-4's keeps "!a" together too.
  const auto join_glm = [&](Json& j) {
    join(j);
    Json& steps = j["pre_tokenizer"]["pretokenizers"];
    steps.erase(1);
    steps.erase(1);
    steps[0]["pattern"]["Regex"] = std::string(kGlm4Pattern);
  };
  EXPECT_EQ(parse(small(join_glm), "!a"), Ids{263});
}

TEST(Tokenizer, LooksUpTokens) {
  const Tokenizer t = small();
  EXPECT_EQ(t.vocab_size(), 263);
  EXPECT_EQ(t.token_to_id("<x>"), 260);
  EXPECT_EQ(t.token_to_id("\u0120a"), 258);
  EXPECT_EQ(t.token_to_id(" a"), std::nullopt);
  EXPECT_EQ(t.token_to_id(""), std::nullopt);
  EXPECT_EQ(t.token_bytes(258), " a");
  EXPECT_EQ(t.token_bytes(0x80), "\x80");
  EXPECT_TRUE(t.is_special(259));
  for (const int32_t id : {260, 0, -1, 263, INT32_MAX, INT32_MIN}) EXPECT_FALSE(t.is_special(id));
}

TEST(Tokenizer, DecodeNamesAnUnknownId) {
  const Tokenizer t = small([](Json& j) { j["added_tokens"][4]["id"] = 300; });
  EXPECT_EQ(t.vocab_size(), 301);
  for (const int32_t id : {-1, 299, 301, INT32_MAX, INT32_MIN}) {
    try {
      t.decode(Ids{97, id});
      ADD_FAILURE() << id;
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find("id " + std::to_string(id)), std::string::npos);
    }
    StreamingDecoder decoder(t);
    EXPECT_THROW(decoder.push(id), InputError);
  }
}

TEST(Tokenizer, DecodeSkipsSpecialTokensOnly) {
  const Tokenizer t = small();
  EXPECT_EQ(t.decode(Ids{}), "");
  EXPECT_EQ(t.decode(Ids{259, 260, 'a'}, false), "<s><x>a");
  EXPECT_EQ(t.decode(Ids{259, 260, 'a'}, true), "<x>a");
}

// What is not UTF-8: GBK, a lone byte, overlong, a surrogate, an unfinished character.
TEST(Tokenizer, EncodeRefusesInvalidUtf8ByOffset) {
  for (const char* bad : {"\xC4\xE3", "\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF0\x9F\x98"}) {
    for (const SpecialTokens mode : {SpecialTokens::kParse, SpecialTokens::kPlain}) {
      try {
        small().encode("abc" + std::string(bad), mode);
        ADD_FAILURE() << "accepted";
      } catch (const InputError& e) {
        const std::string message = e.what();
        EXPECT_NE(message.find("not UTF-8 at byte 3"), std::string::npos) << message;
        EXPECT_EQ(utf8_first_invalid(message), std::string::npos);
      }
    }
  }
}

TEST(StreamingDecoder, HoldsBackUnfinishedCharacters) {
  StreamingDecoder decoder(small());
  EXPECT_EQ(decoder.push('a'), "a");
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(0x9F), "");
  EXPECT_EQ(decoder.push(0x98), "");
  EXPECT_EQ(decoder.push(0x80), "\U0001F600");
  EXPECT_EQ(decoder.push(0xE4), "");
  EXPECT_EQ(decoder.push('b'), "\uFFFDb");  // could not be continued
  EXPECT_EQ(decoder.push(0xFF), "\uFFFD");  // starts nothing
  EXPECT_EQ(decoder.push(0x80), "\uFFFD");  // continues nothing
  EXPECT_EQ(decoder.push(0xE0), "");
  EXPECT_EQ(decoder.push(0x80), "\uFFFD\uFFFD");  // overlong
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.flush(), "\uFFFD");
  EXPECT_EQ(decoder.flush(), "");
  EXPECT_EQ(decoder.push('c'), "c");
}

TEST(StreamingDecoder, SkipsSpecialTokensInsideACharacter) {
  StreamingDecoder decoder(small(), /*skip_special=*/true);
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.push(259), "");
  EXPECT_EQ(decoder.push(0xA9), "\u00E9");
}

rc::Gen<std::string> any_text() {
  const auto code_point = rc::gen::oneOf(
      rc::gen::inRange<uint32_t>(0, 0x80), rc::gen::inRange<uint32_t>(0x80, 0x3100),
      rc::gen::inRange<uint32_t>(0x4E00, 0x9FB0), rc::gen::inRange<uint32_t>(0xE000, 0x110000));
  const auto piece = rc::gen::oneOf(
      rc::gen::map(code_point,
                   [](uint32_t c) {
                     std::string s;
                     utf8_append(s, c);
                     return s;
                   }),
      rc::gen::elementOf(std::vector<std::string>{"<s>", "<x>", "<x>y", "abc", " ab", "  ", "\n",
                                                  "<｜User｜>", "<｜end▁of▁sentence｜>"}));
  return rc::gen::map(rc::gen::container<std::vector<std::string>>(piece),
                      [](const std::vector<std::string>& pieces) {
                        std::string text;
                        for (const std::string& p : pieces) text += p;
                        return text;
                      });
}

RC_GTEST_PROP(TokenizerProperty, RoundTrip, ()) {
  const std::string text = *any_text();
  for (const Tokenizer& t : {small(), trained()}) {
    RC_ASSERT(t.decode(parse(t, text)) == text);
    RC_ASSERT(t.decode(plain(t, text)) == text);
    RC_ASSERT(stream(t, plain(t, text)) == text);
  }
}

RC_GTEST_PROP(TokenizerProperty, PlainYieldsNoAddedId, ()) {
  const std::string text = *any_text();
  const Tokenizer t = small();
  for (const int32_t id : plain(t, text)) RC_ASSERT(id < 257 || id == 258);
  for (const int32_t id : plain(trained(), text)) RC_ASSERT(id > 2 && id < 8173);
}

RC_GTEST_PROP(TokenizerProperty, StreamingEqualsWholeOnAnyIds, ()) {
  const auto ids = *rc::gen::container<Ids>(
      rc::gen::oneOf(rc::gen::inRange<int32_t>(0, 263), rc::gen::inRange<int32_t>(0x80, 0x100)));
  const Tokenizer t = small();
  RC_ASSERT(stream(t, ids) == t.decode(ids));
}

// The inputs that ended or stalled other tokenizers, 1 MiB of each.
std::vector<std::string> pathological_units() {
  return {"Z",      " ",  ".", "1",  "中",         "\n",
          "\u0301", "_",  "^", "a1", "\U0001F600", "\u00FF\u0800<",
          "<｜",    " \n"};
}

void* encode_all(void* failures) {
  for (const std::string& unit : pathological_units()) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    // Parsing differs only where an added token might begin.
    const bool starts_token = unit[0] == '<';
    const Ids ids = starts_token ? parse(trained(), text) : plain(trained(), text);
    if (trained().decode(ids) != text) ++*static_cast<int*>(failures);
  }
  return nullptr;
}

TEST(Tokenizer, OneMebibyteOnASmallStack) {
  trained();
  int failures = 0;
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 256 << 10), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, &attributes, encode_all, &failures), 0);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  EXPECT_EQ(failures, 0);
  pthread_attr_destroy(&attributes);
}

}  // namespace
}  // namespace tamis
