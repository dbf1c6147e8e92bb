// Classes of code points for pre-tokenisation: the general categories L, M, N, P, S and white
// space of Unicode 16.0.0, the version that the regular expressions of the Hugging Face
// `tokenizers` library (0.23, Oniguruma 6.9.10) use.
//
//   const UnicodeClasses classes;            // 128 KiB, filled in microseconds
//   classes.of(U'a') == CharClass::kLetter
#pragma once

#include <cstdint>
#include <vector>

namespace tamis {

enum class CharClass : uint8_t {
  kOther = 0,  // controls, formats, unassigned, private use
  kLetter = 1,
  kMark = 2,
  kNumber = 3,
  kPunctuation = 4,
  kSymbol = 5,
  kSpace = 6,  // White_Space; disjoint from the others
};

class UnicodeClasses {
 public:
  UnicodeClasses();

  CharClass of(char32_t code_point) const {
    return code_point < kDirect ? direct_[code_point] : search(code_point);
  }

 private:
  // Planes 0 and 1 hold all that is common; the few ranges above are searched.
  static constexpr char32_t kDirect = 0x20000;
  static CharClass search(char32_t code_point);

  std::vector<CharClass> direct_;  // on the heap: an encoder may run on a small stack
};

namespace internal {
extern const uint32_t kUnicodeRanges[];
extern const int64_t kUnicodeRangeCount;
}  // namespace internal
}  // namespace tamis
