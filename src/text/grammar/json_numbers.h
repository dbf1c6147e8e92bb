// Numbers of JSON within bounds, as grammars.
#pragma once

#include <optional>
#include <string>

#include "text/grammar/grammar.h"

namespace tamis {

// A bound as its decimal digits: 12.5 is {false, "12", "5"}.
struct Decimal {
  bool negative = false;
  std::string whole = "0";  // no leading zeros
  std::string part;         // no trailing zeros
  bool is_zero() const { return whole == "0" && part.empty(); }
};
// From what JSON writes for a number; empty where it needs an exponent or too many digits.
std::optional<Decimal> parse_decimal(const std::string& json_number);

struct NumberBounds {
  std::optional<Decimal> low, high;
  bool open_low = false, open_high = false;  // the bound itself is left out
  bool bounded() const { return low || high; }
};

GrammarBuilder::Expr json_integer(GrammarBuilder& builder, const NumberBounds& bounds);
GrammarBuilder::Expr json_number(GrammarBuilder& builder, const NumberBounds& bounds);
// Whole numbers that `divisor` divides, 1 to 100.
GrammarBuilder::Expr json_multiple(GrammarBuilder& builder, int64_t divisor);

}  // namespace tamis
