#include "text/grammar/regex.h"

#include <algorithm>

#include "base/error.h"
#include "base/utf8.h"

namespace tamis {
namespace {

using Expr = GrammarBuilder::Expr;
using Ranges = std::vector<GrammarBuilder::CodeRange>;

constexpr uint32_t kLast = 0x10FFFF;
constexpr size_t kMaxPattern = 8192;
constexpr int kMaxGroups = 64;
constexpr int32_t kMaxCount = 100000;

Ranges sorted(Ranges r) {
  std::sort(r.begin(), r.end(), [](const auto& a, const auto& b) { return a.low < b.low; });
  Ranges out;
  for (const auto& x : r) {
    if (!out.empty() && x.low <= out.back().high + 1) {
      out.back().high = std::max(out.back().high, x.high);
    } else {
      out.push_back(x);
    }
  }
  return out;
}

Ranges opposite(const Ranges& r) {
  Ranges out;
  uint32_t from = 0;
  for (const auto& x : sorted(r)) {
    if (x.low > from) out.push_back({from, x.low - 1});
    from = x.high + 1;
  }
  if (from <= kLast) out.push_back({from, kLast});
  return out;
}

const Ranges kDigits = {{'0', '9'}};
const Ranges kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const Ranges kSpace = {{'\t', '\r'}, {' ', ' '}, {0xA0, 0xA0}, {0x2028, 0x2029}, {0xFEFF, 0xFEFF}};
const Ranges kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

// How a character stands in a JSON string, where it cannot stand for itself.
std::string json_escape(uint32_t c) {
  static constexpr std::string_view kNamed = "\b\f\n\r\t\"\\", kNames = "bfnrt\"\\";
  const size_t at = kNamed.find(static_cast<char>(c));
  if (at != std::string_view::npos) return std::string("\\") + kNames[at];
  constexpr std::string_view kHex = "0123456789abcdef";
  return std::string("\\u00") + kHex[c >> 4] + kHex[c & 15];
}

class Parser {
 public:
  Parser(GrammarBuilder& b, std::string_view pattern, const RegexOptions& o,
         const std::string& where)
      : b_(b), options_(o), where_(where) {
    if (pattern.size() > kMaxPattern) {
      throw InputError(where + ": a regular expression of " + std::to_string(pattern.size()) +
                       " bytes, the limit is " + std::to_string(kMaxPattern));
    }
    if (utf8_first_invalid(pattern) != std::string_view::npos) fail("not UTF-8");
    for (size_t i = 0; i < pattern.size();) text_.push_back(decode(pattern, i));
  }

  Expr whole() {
    std::vector<Expr> branches;
    do {
      branches.push_back(top_branch());
    } while (take('|'));
    if (at_ < text_.size()) fail("')' without '('");
    return b_.any_of(std::move(branches));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(where_ + ": regular expression, position " + std::to_string(at_) + ": " +
                     what);
  }
  static uint32_t decode(std::string_view s, size_t& i) {
    const auto lead = static_cast<uint8_t>(s[i++]);
    const int more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    uint32_t c = more == 0 ? lead : lead & (0x3FU >> more);
    for (int k = 0; k < more; ++k) c = c << 6 | (static_cast<uint8_t>(s[i++]) & 0x3FU);
    return c;
  }
  bool done() const { return at_ == text_.size(); }
  uint32_t peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : UINT32_MAX;
  }
  bool take(uint32_t c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  uint32_t next(const char* what) {
    if (done()) fail(std::string("ends within ") + what);
    return text_[at_++];
  }

  Expr characters(const Ranges& ranges) {
    if (options_.text == RegexText::kPlain) return b_.code_points(ranges);
    std::vector<Expr> parts;
    Ranges plain;
    for (const auto& r : sorted(ranges)) {
      uint32_t from = r.low;
      for (uint32_t c = r.low; c <= std::min<uint32_t>(r.high, '\\'); ++c) {
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        if (c > from) plain.push_back({from, c - 1});
        from = c + 1;
        parts.push_back(b_.bytes(json_escape(c)));
      }
      if (from <= r.high) plain.push_back({from, r.high});
    }
    if (!plain.empty()) parts.push_back(b_.code_points(plain));
    if (parts.empty()) fail("a set of no characters");
    return b_.any_of(std::move(parts));
  }
  Expr anything() { return b_.star(characters({{0, kLast}})); }

  Expr top_branch() {
    const bool from_start = take('^');
    std::vector<Expr> parts;
    if (options_.search && !from_start) parts.push_back(anything());
    parts.push_back(branch(0));
    const bool to_end = take('$');
    if (!done() && peek() != '|' && peek() != ')') fail("'$' is known at the end only");
    if (options_.search && !to_end) parts.push_back(anything());
    return b_.sequence(std::move(parts));
  }

  Expr branch(int depth) {
    std::vector<Expr> parts;
    while (!done() && peek() != '|' && peek() != ')' && peek() != '$') {
      parts.push_back(counted(depth));
    }
    return b_.sequence(std::move(parts));
  }

  Expr group(int depth) {
    if (depth >= kMaxGroups) fail("groups within groups: more than " + std::to_string(kMaxGroups));
    if (take('?') && !take(':')) fail("of the groups (?...) only (?:...) is known");
    std::vector<Expr> branches;
    do {
      branches.push_back(branch(depth + 1));
      if (peek() == '$') fail("'$' is known at the end only");
    } while (take('|'));
    if (!take(')')) fail("'(' without ')'");
    return b_.any_of(std::move(branches));
  }

  Expr counted(int depth) {
    Expr e = atom(depth);
    int32_t min = 1, max = 1;
    bool counted = true;
    if (take('*')) {
      min = 0, max = GrammarBuilder::kUnbounded;
    } else if (take('+')) {
      max = GrammarBuilder::kUnbounded;
    } else if (take('?')) {
      min = 0;
    } else if (peek() == '{' && peek(1) >= '0' && peek(1) <= '9') {
      braces(min, max);
    } else {
      counted = false;
    }
    if (!counted) return e;
    take('?');  // a lazy one matches the same texts
    if (peek() == '*' || peek() == '+' || peek() == '?') fail("a repetition of a repetition");
    try {
      return b_.repeat(e, min, max);
    } catch (const InputError& error) {
      fail(error.what());
    }
  }

  int32_t number() {
    int64_t n = 0;
    while (peek() >= '0' && peek() <= '9') {
      n = n * 10 + (text_[at_++] - '0');
      if (n > kMaxCount) fail("a count above " + std::to_string(kMaxCount));
    }
    return static_cast<int32_t>(n);
  }
  void braces(int32_t& min, int32_t& max) {
    ++at_;
    min = max = number();
    if (take(',')) max = peek() == '}' ? GrammarBuilder::kUnbounded : number();
    if (!take('}')) fail("want {n}, {n,} or {n,m}");
  }

  Expr atom(int depth) {
    const uint32_t c = text_[at_++];
    switch (c) {
      case '(':
        return group(depth);
      case '[':
        return characters(char_class());
      case '.':
        return characters(opposite(kLineEnds));
      case '\\':
        return characters(escape());
      case '*':
      case '+':
      case '?':
        --at_;
        fail("a repetition of nothing");
      case '^':
        fail("'^' is known at the beginning only");
      default:
        return characters({{c, c}});
    }
  }

  uint32_t hex(int digits) {
    uint32_t v = 0;
    for (int i = 0; i < digits; ++i) {
      const uint32_t c = next("an escape");
      const uint32_t low = c | 0x20;
      if (c >= '0' && c <= '9') {
        v = v * 16 + (c - '0');
      } else if (low >= 'a' && low <= 'f') {
        v = v * 16 + (low - 'a' + 10);
      } else {
        fail("want a hexadecimal digit");
      }
    }
    return v;
  }

  Ranges escape() {
    const uint32_t c = next("an escape");
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return opposite(kDigits);
      case 'w':
        return kWord;
      case 'W':
        return opposite(kWord);
      case 's':
        return kSpace;
      case 'S':
        return opposite(kSpace);
      default:
        break;
    }
    const auto one = [](uint32_t x) { return Ranges{{x, x}}; };
    static constexpr std::string_view kFrom = "ntrfv0", kTo("\n\t\r\f\v\0", 6);
    const size_t named = c < 128 ? kFrom.find(static_cast<char>(c)) : std::string_view::npos;
    if (named != std::string_view::npos) return one(static_cast<uint8_t>(kTo[named]));
    if (c == 'x') return one(hex(2));
    if (c == 'u') return one(hex(4));
    if (c < 128 && (std::isalnum(static_cast<int>(c)) != 0)) {
      fail(std::string("the escape \\") + static_cast<char>(c) + " is not known");
    }
    return one(c);
  }

  Ranges char_class() {
    const bool inverted = take('^');
    Ranges out;
    for (bool first = true; first || peek() != ']'; first = false) {
      const uint32_t c = next("a character class");
      const Ranges low = c == '\\' ? class_escape() : Ranges{{c, c}};
      const bool single = low.size() == 1 && low[0].low == low[0].high;
      if (peek() == '-' && peek(1) != ']' && single) {
        ++at_;
        const uint32_t d = next("a character class");
        const Ranges high = d == '\\' ? class_escape() : Ranges{{d, d}};
        if (high.size() != 1 || high[0].low != high[0].high || high[0].low < low[0].low) {
          fail("a range of characters that has no order");
        }
        out.push_back({low[0].low, high[0].low});
      } else {
        out.insert(out.end(), low.begin(), low.end());
      }
    }
    ++at_;
    return inverted ? opposite(out) : out;
  }
  Ranges class_escape() {
    if (take('b')) return {{'\b', '\b'}};
    return escape();
  }

  GrammarBuilder& b_;
  const RegexOptions& options_;
  const std::string& where_;
  std::vector<uint32_t> text_;
  size_t at_ = 0;
};

}  // namespace

Expr regex_grammar(GrammarBuilder& builder, std::string_view pattern, const RegexOptions& options,
                   const std::string& where) {
  return Parser(builder, pattern, options, where).whole();
}

// Escapes of half a surrogate pair are left out: no text is behind them.
Expr json_character(GrammarBuilder& b) {
  const Expr hex = b.any_of({b.range('0', '9'), b.range('a', 'f'), b.range('A', 'F')});
  const Expr below_d = b.any_of({b.range('0', '9'), b.range('a', 'c'), b.range('A', 'C'),
                                 b.range('e', 'f'), b.range('E', 'F')});
  const Expr d = b.any_of({b.bytes("d"), b.bytes("D")});
  const Expr code = b.any_of(
      {b.sequence({below_d, hex, hex, hex}), b.sequence({d, b.range('0', '7'), hex, hex})});
  std::vector<Expr> named;
  for (const char c : std::string_view("\"\\/bfnrt")) named.push_back(b.bytes({&c, 1}));
  named.push_back(b.sequence({b.bytes("u"), code}));
  return b.any_of({b.code_points({{0x20, 0x21}, {0x23, 0x5B}, {0x5D, kLast}}),
                   b.sequence({b.bytes("\\"), b.any_of(std::move(named))})});
}

}  // namespace tamis
