#include "base/utf8.h"

namespace tamis {
namespace {

unsigned char at(std::string_view s, size_t i) { return static_cast<unsigned char>(s[i]); }

bool in(unsigned char c, unsigned char lo, unsigned char hi) { return c >= lo && c <= hi; }

struct Lead {
  size_t length;  // 0: no sequence starts with this byte
  unsigned char second_lo, second_hi;
};

// RFC 3629 section 4: the range of the second byte rules out overlong forms and surrogates.
Lead classify(unsigned char c) {
  if (c < 0x80) return {1, 0, 0};
  if (in(c, 0xC2, 0xDF)) return {2, 0x80, 0xBF};
  if (c == 0xE0) return {3, 0xA0, 0xBF};
  if (c == 0xED) return {3, 0x80, 0x9F};
  if (in(c, 0xE1, 0xEF)) return {3, 0x80, 0xBF};
  if (c == 0xF0) return {4, 0x90, 0xBF};
  if (in(c, 0xF1, 0xF3)) return {4, 0x80, 0xBF};
  if (c == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes of text that form a valid prefix of some sequence (possibly a whole one).
size_t valid_prefix(std::string_view text, const Lead& lead) {
  if (lead.length == 0) return 0;
  size_t n = 1;
  while (n < lead.length && n < text.size()) {
    const bool ok =
        n == 1 ? in(at(text, 1), lead.second_lo, lead.second_hi) : in(at(text, n), 0x80, 0xBF);
    if (!ok) break;
    ++n;
  }
  return n;
}

}  // namespace

size_t utf8_sequence_length(std::string_view text) {
  if (text.empty()) return 0;
  const Lead lead = classify(at(text, 0));
  return lead.length != 0 && valid_prefix(text, lead) == lead.length ? lead.length : 0;
}

size_t utf8_first_invalid(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_sequence_length(text.substr(i));
    if (n == 0) return i;
    i += n;
  }
  return std::string_view::npos;
}

char32_t utf8_decode(std::string_view text, size_t length) {
  if (length == 1) return at(text, 0);
  char32_t c = at(text, 0) & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) c = (c << 6) | (at(text, i) & 0x3Fu);
  return c;
}

void utf8_append(std::string& out, char32_t c) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::string utf8_lossy(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    const std::string_view rest = bytes.substr(i);
    const Lead lead = classify(at(rest, 0));
    const size_t n = valid_prefix(rest, lead);
    if (n != 0 && n == lead.length) {
      out += rest.substr(0, n);
      i += n;
    } else {
      out += "\xEF\xBF\xBD";
      i += n == 0 ? 1 : n;
    }
  }
  return out;
}

}  // namespace tamis
