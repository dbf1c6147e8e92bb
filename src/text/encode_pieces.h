// The ids of a rendered chat.
#pragma once

#include <cstdint>
#include <vector>

#include "text/chat.h"
#include "text/tokenizer.h"

namespace tamis {

// Only the format's own markers become special tokens, whatever users wrote; a marker that this
// tokenizer does not have as one token is text, joined to its neighbours.
std::vector<int32_t> encode_pieces(const Tokenizer& tokenizer,
                                   const std::vector<PromptPiece>& pieces);

}  // namespace tamis
