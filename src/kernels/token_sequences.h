// Tokens of several sequences, one after the other, for operations that take all of them at once.
#pragma once

#include <cstdint>

namespace tamis {

// Token t is position[t] of its sequence, whose first token is t - position[t]. Without `position`
// all tokens are one sequence.
struct TokenSequences {
  const int32_t* position = nullptr;  // [tokens], where the operation works
  int64_t longest = 0;                // tokens of the longest sequence
};

}  // namespace tamis
