// Pre-tokenisation: cuts text into the words that byte-pair encoding works in, by the rules that
// tokenizer.json files of these models name. The rules are regular expressions there; here they
// are scanners, so that time is linear and the stack does not grow with the text, and
// tokenizer_split_test.cpp proves them equal to the expressions run by PCRE2.
//
//   split_words(SplitRule::kGpt2, classes, "a b", [&](std::string_view word) { ... });  // "a", "
//   b"
#pragma once

#include <string_view>

#include "base/function_ref.h"
#include "text/tokenizer_unicode.h"

namespace tamis {

enum class SplitRule {
  kDeepSeekV3,  // three Splits: kDigitsPattern, kCjkPattern, kTextPattern
  kGlm4,        // one Split: kGlm4Pattern (GLM-4 and later)
  kGpt2,        // ByteLevel with use_regex: kGpt2Pattern
};

// The patterns as tokenizer.json spells them. In kTextPattern \r and \n are the bytes themselves.
inline constexpr std::string_view kDigitsPattern = R"(\p{N}{1,3})";
inline constexpr std::string_view kCjkPattern = "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+";
inline constexpr std::string_view kTextPattern =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+)"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    R"(|\s+(?!\S)|\s+)";
inline constexpr std::string_view kGlm4Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Calls emit for every word of text, in order; the words joined are the text, none is empty.
// text must be valid UTF-8.
void split_words(SplitRule rule, const UnicodeClasses& classes, std::string_view text,
                 FunctionRef<void(std::string_view)> emit);

}  // namespace tamis
