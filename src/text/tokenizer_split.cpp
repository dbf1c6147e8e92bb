#include "text/tokenizer_split.h"

#include "base/utf8.h"

namespace tamis {
namespace {

struct Char {
  char32_t code = 0;
  CharClass kind = CharClass::kOther;
  size_t length = 0;  // 0: the end of the text
};

// Reads the characters of one piece of text. The end of the piece is the end of the text for the
// rules, as it is for the library's Split.
class Reader {
 public:
  Reader(const UnicodeClasses& classes, std::string_view text) : classes_(classes), text_(text) {}

  size_t size() const { return text_.size(); }
  std::string_view text() const { return text_; }

  Char at(size_t pos) const {
    if (pos >= text_.size()) return {};
    const auto byte = static_cast<unsigned char>(text_[pos]);
    if (byte < 0x80) return {byte, classes_.of(byte), 1};
    const size_t length = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    const char32_t code = utf8_decode(text_.substr(pos), length);
    return {code, classes_.of(code), length};
  }

  template <typename Predicate>
  size_t skip_while(size_t pos, Predicate wanted) const {
    for (Char c = at(pos); c.length != 0 && wanted(c); c = at(pos)) pos += c.length;
    return pos;
  }

 private:
  const UnicodeClasses& classes_;
  std::string_view text_;
};

bool is_newline(const Char& c) { return c.code == '\n' || c.code == '\r'; }
bool is_space(const Char& c) { return c.kind == CharClass::kSpace; }
bool is_letter(const Char& c) { return c.kind == CharClass::kLetter; }
bool is_number(const Char& c) { return c.kind == CharClass::kNumber; }
bool is_word(const Char& c) { return is_letter(c) || c.kind == CharClass::kMark; }
bool is_sign(const Char& c) {
  return c.kind == CharClass::kPunctuation || c.kind == CharClass::kSymbol;
}
bool is_ascii_letter(const Char& c) {
  return (c.code >= 'a' && c.code <= 'z') || (c.code >= 'A' && c.code <= 'Z');
}
bool is_cjk(const Char& c) {
  return (c.code >= 0x4E00 && c.code <= 0x9FA5) || (c.code >= 0x3040 && c.code <= 0x30FF);
}

// The white-space alternatives, `\s*[\r\n]+` (when newlines are a rule) then `\s+(?!\S)|\s+`, at a
// white-space character. A greedy \s+ that must not stand before a \S gives back one character.
size_t match_space(const Reader& in, size_t pos, bool newline_rule) {
  size_t end = pos, last = pos, after_newline = pos;
  for (Char c = in.at(end); c.length != 0 && is_space(c); c = in.at(end)) {
    last = end;
    end += c.length;
    if (is_newline(c)) after_newline = end;
  }
  if (newline_rule && after_newline != pos) return after_newline;
  return end == in.size() || last == pos ? end : last;
}

// One match of kTextPattern at pos, its end; pos itself if there is none.
size_t match_text(const Reader& in, size_t pos) {
  const Char c = in.at(pos);
  const size_t after = pos + c.length;
  if (c.code < 0x80 && is_sign(c) && is_ascii_letter(in.at(after))) {
    return in.skip_while(after, is_ascii_letter);
  }
  if (is_word(c)) return in.skip_while(after, is_word);
  if (!is_newline(c) && !is_sign(c) && is_word(in.at(after))) return in.skip_while(after, is_word);
  const size_t signs = c.code == ' ' ? after : pos;
  if (is_sign(in.at(signs))) {
    return in.skip_while(in.skip_while(signs, is_sign), is_newline);
  }
  return is_space(c) ? match_space(in, pos, /*newline_rule=*/true) : pos;
}

bool is_other(const Char& c) { return !is_space(c) && !is_letter(c) && !is_number(c); }

// ASCII lower case when `fold`; the long s folds to an s, alone outside ASCII to fold to a letter
// of a contraction.
char32_t folded(char32_t c, bool fold) {
  if (!fold) return c;
  if (c == 0x17F) return 's';
  return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

// End of one of 's 't 're 've 'm 'll 'd at pos; pos if there is none.
size_t match_contraction(const Reader& in, size_t pos, bool ignore_case) {
  if (in.at(pos).code != '\'') return pos;
  const Char first = in.at(pos + 1);
  const size_t after = pos + 1 + first.length;
  const Char second = in.at(after);
  switch (folded(first.code, ignore_case)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return after;
    case 'r':
    case 'v':
      return folded(second.code, ignore_case) == 'e' ? after + second.length : pos;
    case 'l':
      return folded(second.code, ignore_case) == 'l' ? after + second.length : pos;
    default:
      return pos;
  }
}

size_t match_digits(const Reader& in, size_t pos) {
  for (int n = 0; n < 3; ++n) {
    const Char c = in.at(pos);
    if (c.length == 0 || !is_number(c)) break;
    pos += c.length;
  }
  return pos;
}

// One match of kGlm4Pattern at pos, its end. Every character is matched by some alternative.
size_t match_glm4(const Reader& in, size_t pos) {
  const size_t contraction = match_contraction(in, pos, /*ignore_case=*/true);
  if (contraction != pos) return contraction;
  const Char c = in.at(pos);
  const size_t after = pos + c.length;
  if (is_letter(c)) return in.skip_while(after, is_letter);
  if (is_number(c)) return match_digits(in, pos);
  if (!is_newline(c) && is_letter(in.at(after))) return in.skip_while(after, is_letter);
  const size_t signs = c.code == ' ' ? after : pos;
  const Char first = in.at(signs);
  if (first.length != 0 && is_other(first)) {
    return in.skip_while(in.skip_while(signs, is_other), is_newline);
  }
  return match_space(in, pos, /*newline_rule=*/true);
}

// One match of kGpt2Pattern at pos, its end. Every character is matched by some alternative.
size_t match_gpt2(const Reader& in, size_t pos) {
  const size_t contraction = match_contraction(in, pos, /*ignore_case=*/false);
  if (contraction != pos) return contraction;
  const Char c = in.at(pos);
  const size_t start = c.code == ' ' ? pos + 1 : pos;
  const Char first = in.at(start);
  if (first.length == 0 || is_space(first)) return match_space(in, pos, /*newline_rule=*/false);
  if (is_letter(first)) return in.skip_while(start, is_letter);
  if (is_number(first)) return in.skip_while(start, is_number);
  return in.skip_while(start, is_other);
}

// The library's Split with behaviour Isolated: every match is a piece, and so is every stretch
// between matches. match(pos) returns the end of a match that starts at pos, or pos.
template <typename Match, typename Emit>
void split_isolated(const Reader& in, Match match, Emit emit) {
  size_t gap = 0;
  for (size_t pos = 0; pos < in.size();) {
    const size_t end = match(pos);
    if (end == pos) {
      pos += in.at(pos).length;
      continue;
    }
    if (gap < pos) emit(in.text().substr(gap, pos - gap));
    emit(in.text().substr(pos, end - pos));
    gap = pos = end;
  }
  if (gap < in.size()) emit(in.text().substr(gap));
}

template <typename Emit>
void split_deepseek(const UnicodeClasses& classes, std::string_view text, Emit emit) {
  const auto by_text = [&](std::string_view piece) {
    const Reader in(classes, piece);
    split_isolated(
        in, [&](size_t pos) { return match_text(in, pos); }, emit);
  };
  const auto by_cjk = [&](std::string_view piece) {
    const Reader in(classes, piece);
    split_isolated(
        in, [&](size_t pos) { return in.skip_while(pos, is_cjk); }, by_text);
  };
  const Reader in(classes, text);
  split_isolated(
      in, [&](size_t pos) { return match_digits(in, pos); }, by_cjk);
}

}  // namespace

void split_words(SplitRule rule, const UnicodeClasses& classes, std::string_view text,
                 FunctionRef<void(std::string_view)> emit) {
  const Reader in(classes, text);
  switch (rule) {
    case SplitRule::kDeepSeekV3:
      return split_deepseek(classes, text, emit);
    case SplitRule::kGlm4:
      return split_isolated(
          in, [&](size_t pos) { return match_glm4(in, pos); }, emit);
    case SplitRule::kGpt2:
      return split_isolated(
          in, [&](size_t pos) { return match_gpt2(in, pos); }, emit);
  }
}

}  // namespace tamis
