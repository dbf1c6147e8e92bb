#include "server/constraint_cache.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tamis::server {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer t = Tokenizer::load(TAMIS_SOURCE_DIR "/models/tamis-mini/tokenizer.json");
  return t;
}
std::shared_ptr<const TokenTrie> trie() {
  static const auto t = std::make_shared<TokenTrie>(tokenizer(), 8192);
  return t;
}

ConstraintSpec regex(const std::string& pattern) {
  ConstraintSpec s;
  s.answer = ConstraintSpec::Answer::kRegex;
  s.text = pattern;
  return s;
}

TEST(ConstraintCache, TheSameIsCompiledOnce) {
  ConstraintCache cache(trie());
  const auto a = cache.get(regex("[a-z]+"));
  EXPECT_EQ(cache.get(regex("[a-z]+")), a);
  EXPECT_NE(cache.get(regex("[a-y]+")), a);
  EXPECT_EQ(cache.stats().hits, 1);
  EXPECT_EQ(cache.stats().misses, 2);
  EXPECT_EQ(cache.get({}), nullptr);
  EXPECT_THROW(cache.get(regex("(")), InputError);
  EXPECT_EQ(cache.stats().kept, 2);
}

// Each member of a specification makes another constraint.
TEST(ConstraintCache, NothingPassesForSomethingElse) {
  ConstraintCache cache(trie());
  ConstraintSpec s;
  s.tools = ConstraintSpec::Tools::kRequired;
  s.declared = {{"f", "", R"({"type":"object","properties":{"x":{"type":"null"}}})", "", false}};
  std::vector<ConstraintSpec> all{s};
  const auto with = [&](auto change) {
    all.push_back(s);
    change(all.back());
  };
  with([](auto& c) { c.tools = ConstraintSpec::Tools::kAuto; });
  with([](auto& c) { c.format = ChatFormat::kV32; });
  with([](auto& c) { c.parallel = false; });
  with([](auto& c) { c.in_thinking = true; });
  with([](auto& c) { c.declared[0].strict = true; });
  with([](auto& c) { c.declared[0].name = "g"; });
  with([](auto& c) { c.declared.push_back({"h", "", "{}", "", false}); });
  std::vector<std::shared_ptr<Constraint>> made;
  for (const auto& c : all) made.push_back(cache.get(c));
  for (size_t i = 0; i < made.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(made[i], made[j]) << i << " " << j;
  }
}

// Thousands of schemas, each asked for once, leave no more than the limits allow; what is asked for
// again and again stays.
TEST(ConstraintCache, IsBoundedAndKeepsWhatIsUsed) {
  ConstraintCache cache(trie(), {.count = 16, .bytes = 1 << 20});
  const auto used = cache.get(regex("used"));
  for (int i = 0; i < 3000; ++i) {
    cache.get(regex("x" + std::to_string(i)));
    ASSERT_EQ(cache.get(regex("used")), used);
    ASSERT_LE(cache.stats().kept, 16);
    ASSERT_LE(cache.stats().bytes, 1 << 20);
  }
  EXPECT_EQ(cache.stats().kept, 16);
}

// Constraints grow while they are followed: that counts as well.
TEST(ConstraintCache, BytesOfMasksCount) {
  ConstraintCache cache(trie(), {.count = 1000, .bytes = 4 << 20});
  const int32_t letter = tokenizer().encode("a", SpecialTokens::kPlain).at(0);
  for (int i = 0; i < 20; ++i) {
    const auto c = cache.get(regex("[ab]{600}" + std::to_string(i)));
    Matcher m(c);
    for (int k = 0; k < 600; ++k) {
      m.allowed();
      ASSERT_TRUE(m.accept(letter));
      m.commit();
    }
  }
  cache.get(regex("last"));
  EXPECT_LE(cache.stats().bytes, 4 << 20);
  EXPECT_LT(cache.stats().kept, 21);
}

}  // namespace
}  // namespace tamis::server
