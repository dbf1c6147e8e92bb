// UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tamis {

// Length (1..4) of the valid sequence that text starts with; 0 if it starts with none.
size_t utf8_sequence_length(std::string_view text);

// Offset of the first byte that is not part of a valid sequence; npos if all are.
size_t utf8_first_invalid(std::string_view text);

// The code point of the valid sequence of `length` bytes at the start of text.
char32_t utf8_decode(std::string_view text, size_t length);

void utf8_append(std::string& out, char32_t code_point);

// Replaces every maximal invalid part by U+FFFD, as the Unicode standard (3.9, table 3-8) and
// Rust's from_utf8_lossy do.
std::string utf8_lossy(std::string_view bytes);

}  // namespace tamis
