// The scanners against the regular expressions they stand for, run by PCRE2.
#include "text/tokenizer_split.h"

#include <gtest/gtest.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <rapidcheck/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "base/utf8.h"

namespace tamis {
namespace {

using Pieces = std::vector<std::string>;

// One pattern compiled with UTF and a match limit. \s becomes the property White_Space: PCRE2's own
// \s would add U+180E, which is no white space since Unicode 6.3.
class Regex {
 public:
  explicit Regex(std::string pattern) {
    replace_all(pattern, "\\s", "\\p{White_Space}");
    replace_all(pattern, "\\S", "\\P{White_Space}");
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(),
                            PCRE2_UTF, &error, &offset, nullptr);
    if (code_ == nullptr) throw std::runtime_error("pattern at " + std::to_string(offset));
    context_ = pcre2_match_context_create_8(nullptr);
    pcre2_set_match_limit_8(context_, 1000000);
    match_ = pcre2_match_data_create_from_pattern_8(code_, nullptr);
  }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  ~Regex() {
    pcre2_match_data_free_8(match_);
    pcre2_match_context_free_8(context_);
    pcre2_code_free_8(code_);
  }

  // Matches and the text between them, both as pieces.
  Pieces split(const std::string& text) const {
    Pieces pieces;
    size_t done = 0;
    while (done < text.size()) {
      const int rc = pcre2_match_8(code_, reinterpret_cast<PCRE2_SPTR8>(text.data()), text.size(),
                                   done, PCRE2_NO_UTF_CHECK, match_, context_);
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0) throw std::runtime_error("match error " + std::to_string(rc));
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer_8(match_);
      if (done < span[0]) pieces.push_back(text.substr(done, span[0] - done));
      pieces.push_back(text.substr(span[0], span[1] - span[0]));
      done = span[1];
    }
    if (done < text.size()) pieces.push_back(text.substr(done));
    return pieces;
  }

  bool matches(char32_t c) const {
    std::string text;
    utf8_append(text, c);
    return pcre2_match_8(code_, reinterpret_cast<PCRE2_SPTR8>(text.data()), text.size(), 0,
                         PCRE2_NO_UTF_CHECK, match_, context_) >= 0;
  }

 private:
  static void replace_all(std::string& text, std::string_view from, std::string_view to) {
    for (size_t i = 0; (i = text.find(from, i)) != text.npos; i += to.size()) {
      // An escaped backslash before the letter is not the class.
      if (i > 0 && text[i - 1] == '\\') continue;
      text.replace(i, from.size(), to);
    }
  }

  pcre2_code_8* code_;
  pcre2_match_context_8* context_;
  pcre2_match_data_8* match_;
};

Pieces split_by_regex(const std::vector<std::string_view>& patterns, const std::string& text) {
  Pieces pieces = {text};
  for (const std::string_view pattern : patterns) {
    const Regex regex{std::string(pattern)};
    Pieces finer;
    for (const std::string& piece : pieces) {
      for (std::string& part : regex.split(piece)) finer.push_back(std::move(part));
    }
    pieces = std::move(finer);
  }
  return pieces;
}

Pieces split_by_scanner(SplitRule rule, const std::string& text) {
  static const UnicodeClasses classes;
  Pieces pieces;
  split_words(rule, classes, text, [&](std::string_view word) { pieces.emplace_back(word); });
  return pieces;
}

struct Rule {
  SplitRule rule;
  std::vector<std::string_view> patterns;
};

std::vector<Rule> rules() {
  return {{SplitRule::kDeepSeekV3, {kDigitsPattern, kCjkPattern, kTextPattern}},
          {SplitRule::kGlm4, {kGlm4Pattern}},
          {SplitRule::kGpt2, {kGpt2Pattern}}};
}

void expect_same(const std::string& text) {
  for (const Rule& r : rules()) {
    const Pieces wanted = text.empty() ? Pieces{} : split_by_regex(r.patterns, text);
    EXPECT_EQ(split_by_scanner(r.rule, text), wanted) << "rule " << static_cast<int>(r.rule);
  }
}

// Characters at which the alternatives of the patterns meet.
std::vector<char32_t> border_characters() {
  return {U'a',   U'Z',    U's',   U't',   U'r',   U'e',   U'v',   U'l',     U'm',   U'd',
          U'\'',  U' ',    U' ',   U'\n',  U'\r',  U'\t',  0x85,   0xA0,     0x3000, 0x2028,
          U'.',   U'-',    U'_',   U'^',   U'~',   U'1',   U'0',   0xBD,     0x0663, 0x4E00,
          0x9FA5, 0x9FA6,  0x3042, 0x30FB, 0x30FC, 0x3099, 0x3040, 0x0301,   0x0903, 0x20AC,
          0xFF5C, 0x1F600, 0x200D, 0x00,   0x7F,   0xAD,   0xE000, 0x10FFFF, 0x0130, 0x17F};
}

rc::Gen<std::string> border_text() {
  return rc::gen::map(
      rc::gen::container<std::vector<char32_t>>(rc::gen::elementOf(border_characters())),
      [](const std::vector<char32_t>& characters) {
        std::string text;
        for (const char32_t c : characters) utf8_append(text, c);
        return text;
      });
}

TEST(TokenizerSplit, EdgesEqualPcre2) {
  for (const char* text : {"",
                           "a",
                           " ",
                           "  ",
                           "\n",
                           " \n",
                           "\n ",
                           "  \n  x",
                           " x",
                           "  x",
                           "\t\tx",
                           "x  ",
                           "1",
                           "123",
                           "1234",
                           "a1b",
                           "don't",
                           "DON'T",
                           "'RE'Ve'lL'lx're",
                           "'\u017F",
                           "'",
                           "''s",
                           "!abc",
                           "!!abc",
                           " !\r\n\r\nx",
                           "e\u0301",
                           "\u0301e",
                           " \u0301",
                           "1\u0301",
                           "ア・イ",
                           "中a中",
                           "龥龦",
                           "\u200Da",
                           "\u200D\u200D"}) {
    SCOPED_TRACE(text);
    expect_same(text);
  }
}

RC_GTEST_PROP(TokenizerSplit, BordersEqualPcre2, ()) {
  const std::string text = *border_text();
  for (const Rule& r : rules()) {
    const Pieces wanted = text.empty() ? Pieces{} : split_by_regex(r.patterns, text);
    RC_ASSERT(split_by_scanner(r.rule, text) == wanted);
  }
}

// Every pair of border characters, after nothing, after a letter and after a space.
TEST(TokenizerSplit, PairsEqualPcre2) {
  for (const Rule& r : rules()) {
    for (const char32_t first : border_characters()) {
      std::string text;
      for (const char32_t second : border_characters()) {
        for (const char32_t c : {U'x', first, second, U' ', first, second, second, first}) {
          utf8_append(text, c);
        }
      }
      EXPECT_EQ(split_by_scanner(r.rule, text), split_by_regex(r.patterns, text))
          << "U+" << std::hex << static_cast<uint32_t>(first);
    }
  }
}

// The table is of Unicode 16; a PCRE2 of an older one calls the newer characters unassigned, and
// agrees on every other.
TEST(TokenizerSplit, ClassesEqualPcre2) {
  const UnicodeClasses classes;
  const Regex unassigned("\\p{Cn}");
  const std::pair<CharClass, const char*> wanted[] = {
      {CharClass::kLetter, "\\p{L}"}, {CharClass::kMark, "\\p{M}"},
      {CharClass::kNumber, "\\p{N}"}, {CharClass::kPunctuation, "\\p{P}"},
      {CharClass::kSymbol, "\\p{S}"}, {CharClass::kSpace, "\\s"}};
  for (const auto& [kind, pattern] : wanted) {
    const Regex regex(pattern);
    int64_t wrong = 0, members = 0;
    for (char32_t c = 0; c < 0x110000; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      const bool found = classes.of(c) == kind;
      members += found ? 1 : 0;
      if (found != regex.matches(c) && !unassigned.matches(c)) ++wrong;
    }
    EXPECT_EQ(wrong, 0) << pattern;
    EXPECT_GE(members, 25) << pattern;
  }
}

TEST(TokenizerSplit, ClassesOfUnicode16) {
  const UnicodeClasses classes;
  EXPECT_EQ(classes.of(0x1C89), CharClass::kLetter);        // Unicode 16
  EXPECT_EQ(classes.of(0x2EBF0), CharClass::kLetter);       // Unicode 15.1, above the direct table
  EXPECT_EQ(classes.of(0x10D40), CharClass::kNumber);       // Unicode 16
  EXPECT_EQ(classes.of(0x1E5FF), CharClass::kPunctuation);  // Unicode 16
  EXPECT_EQ(classes.of(0x323B0), CharClass::kOther);        // Unicode 17
  EXPECT_EQ(classes.of(0x180E), CharClass::kOther);         // no space since Unicode 6.3
  EXPECT_EQ(classes.of(0x10FFFF), CharClass::kOther);
}

}  // namespace
}  // namespace tamis
