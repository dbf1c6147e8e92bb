#include "text/grammar/json_numbers.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"

namespace tamis {
namespace {

using Expr = GrammarBuilder::Expr;

constexpr int32_t kWholeDigits = 15, kPartDigits = 15;

Expr digits(GrammarBuilder& b, int32_t min, int32_t max) {
  return b.repeat(b.range('0', '9'), min, max);
}

// Numbers without a sign, digit by digit beside their bounds. A state says how many digits have
// been written and whether they are still those of the lower or of the upper bound.
class Magnitudes {
 public:
  Magnitudes(GrammarBuilder& b, const NumberBounds& bounds, bool whole_only)
      : b_(b), bounds_(bounds), whole_only_(whole_only) {}

  // Empty if no number lies between the bounds.
  std::optional<Expr> all() {
    const auto min = bounds_.low ? bounds_.low->whole.size() : 1;
    const auto max =
        bounds_.high ? bounds_.high->whole.size() : std::max<size_t>(kWholeDigits, min + 1);
    std::vector<Expr> lengths;
    for (size_t n = min; n <= max; ++n) {
      const bool at_low = bounds_.low && n == min, at_high = bounds_.high && n == max;
      if (const auto e = whole(n, 0, at_low, at_high)) lengths.push_back(*e);
    }
    if (lengths.empty()) return std::nullopt;
    return b_.any_of(std::move(lengths));
  }

 private:
  using Key = std::tuple<size_t, size_t, bool, bool>;

  template <typename Next>
  std::optional<Expr> choose(char from, char to, Next next) {
    std::vector<Expr> options;
    for (char d = from; d <= to; ++d) {
      if (const auto rest = next(d)) options.push_back(b_.sequence({b_.range(d, d), *rest}));
    }
    if (options.empty()) return std::nullopt;
    return b_.any_of(std::move(options));
  }

  std::optional<Expr> whole(size_t length, size_t at, bool low, bool high) {
    if (at == length) return end_of_whole(low, high);
    const auto [it, added] = whole_.try_emplace(Key{length, at, low, high});
    if (!added) return it->second;
    const char from = low ? bounds_.low->whole[at] : at == 0 && length > 1 ? '1' : '0';
    const char to = high ? bounds_.high->whole[at] : '9';
    auto e = choose(
        from, to, [&](char d) { return whole(length, at + 1, low && d == from, high && d == to); });
    if (e) e = b_.rule(*e);
    whole_[Key{length, at, low, high}] = e;
    return e;
  }

  // Whether the number may end when these digits of the part behind the point are written.
  bool may_end(size_t at, bool low, bool high) const {
    if (low) {
      const bool equal = at >= bounds_.low->part.size();
      if (!equal || bounds_.open_low) return false;
    }
    if (high) {
      const bool equal = at >= bounds_.high->part.size();
      if (equal && bounds_.open_high) return false;
    }
    return true;
  }

  std::optional<Expr> end_of_whole(bool low, bool high) {
    std::vector<Expr> options;
    if (may_end(0, low, high)) options.push_back(b_.empty());
    if (!whole_only_) {
      if (const auto rest = part(0, low, high)) {
        options.push_back(b_.sequence({b_.bytes("."), *rest}));
      }
    }
    if (options.empty()) return std::nullopt;
    return b_.any_of(std::move(options));
  }

  static char digit_of(const Decimal& d, size_t at) {
    return at < d.part.size() ? d.part[at] : '0';
  }

  // At least one more digit.
  std::optional<Expr> part(size_t at, bool low, bool high) {
    if (at >= kPartDigits) return std::nullopt;
    if (!low && !high) return digits(b_, 1, static_cast<int32_t>(kPartDigits - at));
    const auto [it, added] = part_.try_emplace(Key{0, at, low, high});
    if (!added) return it->second;
    const char from = low ? digit_of(*bounds_.low, at) : '0';
    const char to = high ? digit_of(*bounds_.high, at) : '9';
    auto e = choose(from, to, [&](char d) -> std::optional<Expr> {
      const bool l = low && d == from, h = high && d == to;
      std::vector<Expr> options;
      if (may_end(at + 1, l, h)) options.push_back(b_.empty());
      if (const auto rest = part(at + 1, l, h)) options.push_back(*rest);
      if (options.empty()) return std::nullopt;
      return b_.any_of(std::move(options));
    });
    if (e) e = b_.rule(*e);
    part_[Key{0, at, low, high}] = e;
    return e;
  }

  GrammarBuilder& b_;
  const NumberBounds& bounds_;
  bool whole_only_;
  std::map<Key, std::optional<Expr>> whole_, part_;
};

bool above(const Decimal& a, const Decimal& b) {  // magnitudes
  if (a.whole.size() != b.whole.size()) return a.whole.size() > b.whole.size();
  if (a.whole != b.whole) return a.whole > b.whole;
  return a.part > b.part;
}

// Bounds on the magnitude of the positive numbers, or of the negative ones; empty if there are
// none.
std::optional<NumberBounds> one_side(const NumberBounds& b, bool negative) {
  const auto& low = negative ? b.high : b.low;
  const auto& high = negative ? b.low : b.high;
  NumberBounds out;
  out.open_low = negative ? b.open_high : b.open_low;
  out.open_high = negative ? b.open_low : b.open_high;
  if (low && (low->negative == negative || low->is_zero())) out.low = low;
  if (!out.low) {
    out.low = Decimal{};
    // Zero belongs to the positive side; it is below every bound that is not there.
    out.open_low = negative;
  }
  if (negative && out.low->is_zero()) out.open_low = true;
  if (high) {
    if (high->negative != negative && !high->is_zero()) return std::nullopt;
    out.high = high;
    if (above(*out.low, *out.high)) return std::nullopt;
  }
  return out;
}

Expr bounded(GrammarBuilder& b, const NumberBounds& bounds, bool whole_only) {
  std::vector<Expr> sides;
  for (const bool negative : {false, true}) {
    const auto side = one_side(bounds, negative);
    if (!side) continue;
    if (const auto e = Magnitudes(b, *side, whole_only).all()) {
      sides.push_back(b.sequence({b.bytes(negative ? "-" : ""), *e}));
    }
  }
  if (sides.empty()) throw InputError("no number lies between the bounds");
  return b.any_of(std::move(sides));
}

}  // namespace

std::optional<Decimal> parse_decimal(const std::string& text) {
  Decimal d;
  size_t i = 0;
  if (i < text.size() && text[i] == '-') d.negative = true, ++i;
  const size_t point = std::min(text.find('.'), text.size());
  d.whole = text.substr(i, point - i);
  if (point < text.size()) d.part = text.substr(point + 1);
  const auto all_digits = [](const std::string& s) {
    return std::all_of(s.begin(), s.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  if (!all_digits(d.whole) || !all_digits(d.part) || d.whole.empty()) return std::nullopt;
  while (!d.part.empty() && d.part.back() == '0') d.part.pop_back();
  if (d.whole.size() > kWholeDigits + 3 || d.part.size() >= kPartDigits) return std::nullopt;
  if (d.is_zero()) d.negative = false;
  return d;
}

Expr json_integer(GrammarBuilder& b, const NumberBounds& bounds) {
  if (bounds.bounded()) return bounded(b, bounds, true);
  return b.sequence(
      {b.optional(b.bytes("-")),
       b.any_of({b.bytes("0"), b.sequence({b.range('1', '9'), digits(b, 0, kWholeDigits)})})});
}

Expr json_number(GrammarBuilder& b, const NumberBounds& bounds) {
  if (bounds.bounded()) return bounded(b, bounds, false);
  const Expr sign = b.optional(b.any_of({b.bytes("+"), b.bytes("-")}));
  return b.sequence(
      {json_integer(b, {}), b.optional(b.sequence({b.bytes("."), digits(b, 1, kPartDigits)})),
       b.optional(b.sequence({b.any_of({b.bytes("e"), b.bytes("E")}), sign, digits(b, 1, 2)}))});
}

// One rule for each remainder and number of digits that may follow.
Expr json_multiple(GrammarBuilder& b, int64_t divisor) {
  std::vector<int32_t> rules;
  const auto rule = [&](int64_t remainder, int64_t left) {
    return rules[static_cast<size_t>(left * divisor + remainder)];
  };
  for (int64_t i = 0; i < divisor * kWholeDigits; ++i) rules.push_back(b.declare());
  const auto digit = [&](int64_t r, int32_t d, int64_t left) {
    return b.sequence({b.range('0' + d, '0' + d), b.call(rule((r * 10 + d) % divisor, left))});
  };
  // Whether a remainder can still come to nothing with the digits that are left.
  std::vector<uint8_t> can(rules.size());
  const auto may = [&](int64_t r, int64_t left) {
    return can[static_cast<size_t>(left * divisor + r % divisor)] != 0;
  };
  for (int64_t left = 0; left < kWholeDigits; ++left) {
    for (int64_t r = 0; r < divisor; ++r) {
      std::vector<Expr> options;
      if (r == 0) options.push_back(b.empty());
      for (int32_t d = 0; d < 10 && left > 0; ++d) {
        if (may(r * 10 + d, left - 1)) options.push_back(digit(r, d, left - 1));
      }
      can[static_cast<size_t>(left * divisor + r)] = options.empty() ? 0 : 1;
      // A remainder that cannot is never called.
      b.define(rule(r, left), options.empty() ? b.empty() : b.any_of(std::move(options)));
    }
  }
  std::vector<Expr> first{b.bytes("0")};
  for (int32_t d = 1; d < 10; ++d) {
    if (may(d, kWholeDigits - 1)) first.push_back(digit(0, d, kWholeDigits - 1));
  }
  return b.sequence({b.optional(b.bytes("-")), b.any_of(std::move(first))});
}

}  // namespace tamis
