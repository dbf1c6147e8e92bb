#include "text/tokenizer_unicode.h"

#include <algorithm>

namespace tamis {
namespace {

using internal::kUnicodeRangeCount;
using internal::kUnicodeRanges;

char32_t first_of(uint32_t entry) { return entry >> 3; }

CharClass class_of(uint32_t entry) { return static_cast<CharClass>(entry & 7); }

}  // namespace

UnicodeClasses::UnicodeClasses() : direct_(kDirect) {
  for (int64_t i = 0; i < kUnicodeRangeCount; ++i) {
    const char32_t first = std::min(first_of(kUnicodeRanges[i]), kDirect);
    const char32_t next =
        i + 1 < kUnicodeRangeCount ? std::min(first_of(kUnicodeRanges[i + 1]), kDirect) : kDirect;
    std::fill(direct_.begin() + first, direct_.begin() + next, class_of(kUnicodeRanges[i]));
  }
}

CharClass UnicodeClasses::search(char32_t code_point) {
  const auto* end = kUnicodeRanges + kUnicodeRangeCount;
  const auto* after =
      std::upper_bound(kUnicodeRanges, end, code_point,
                       [](char32_t c, uint32_t entry) { return c < first_of(entry); });
  return class_of(after[-1]);  // the first range starts at 0
}

}  // namespace tamis
