// Regular expressions as grammars: literals, ., classes, \d \w \s and their opposites, groups,
// alternatives, * + ? {n,m}, and ^ and $ at the ends. Anything that no finite automaton can do is
// refused by name: lookaround, back references, word boundaries.
#pragma once

#include <string_view>

#include "text/grammar/grammar.h"

namespace tamis {

enum class RegexText : uint8_t {
  kPlain,  // the text itself
  kJson,   // the inside of a JSON string that stands for the text, escaped where it must be
};
struct RegexOptions {
  RegexText text = RegexText::kPlain;
  // Without ^ or $ the expression may begin or end anywhere, as JSON schema's "pattern".
  bool search = false;
};

// InputError "WHERE: ..." with the position.
GrammarBuilder::Expr regex_grammar(GrammarBuilder& builder, std::string_view pattern,
                                   const RegexOptions& options, const std::string& where);

// One character of a JSON string, any.
GrammarBuilder::Expr json_character(GrammarBuilder& builder);

}  // namespace tamis
