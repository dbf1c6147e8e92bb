// ThreadSanitizer makes tests of whole models ten to a hundred times slower: there they take fewer
// cases, of the same kinds and with the same claims, TAMIS_FEWER_CASES=1 also in other builds.
#pragma once

#include <cstdlib>

namespace tamis {

inline bool fewer_cases() {
#if defined(__SANITIZE_THREAD__)
  return true;
#else
  const char* wanted = std::getenv("TAMIS_FEWER_CASES");
  return wanted != nullptr && *wanted == '1';
#endif
}

// `all`, or `few` of them.
template <typename T>
T fewer(T all, T few) {
  return fewer_cases() ? few : all;
}

}  // namespace tamis
