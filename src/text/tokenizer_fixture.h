// A small tokenizer.json for tests: 256 bytes (ids 0 to 255, byte b has id b), a few merges and
// added tokens, the DeepSeek-V3 split rules.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace tamis {

// Vocabulary: bytes, "ab" 256, "abc" 257, "\u0120a" 258, "<s>" 259. Merges: a b, ab c, \u0120 a.
// Added: "<s>" 259 special, "abc" 257 (a token the merges also reach), "<x>" 260, "<x>y" 261, and
// "x>y<" 262, which is normalized.
nlohmann::json small_tokenizer_json();

}  // namespace tamis
