#include "text/encode_pieces.h"

namespace tamis {

std::vector<int32_t> encode_pieces(const Tokenizer& tokenizer,
                                   const std::vector<PromptPiece>& pieces) {
  const auto known = [&](std::string_view marker) {
    return tokenizer.token_to_id(marker).has_value();
  };
  std::vector<int32_t> ids;
  for (const PromptPiece& piece : join_unknown_markers(pieces, known)) {
    if (piece.special) {
      ids.push_back(*tokenizer.token_to_id(piece.text));
      continue;
    }
    const auto part = tokenizer.encode(piece.text, SpecialTokens::kPlain);
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

}  // namespace tamis
