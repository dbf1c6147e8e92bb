// Which keys each token of a batch attends to, a bit each, for attention in tiles of 64 tokens by
// 64 keys. Made from a selection by mask_selection (kernels/indexer_select/mask_selection.h).
#pragma once

#include <cstdint>

namespace tamis {

// Positions are those of keys within a token's own sequence; none of a token's bits stands past its
// own position. Memory: a bit for each token and position of the longest sequence, 1/64 more for
// the tiles.
struct SelectionMask {
  static constexpr int64_t kTile = 64;

  // [words + words of tiles][stride]: bit s % 64 of [s / 64][t] is that of token t and position s.
  // Null: every token attends to everything up to itself.
  const uint64_t* bits = nullptr;
  int64_t stride = 0;  // tokens of the batch
  int64_t words = 0;   // of a token: tiles of the longest sequence

  constexpr explicit operator bool() const { return bits != nullptr; }
  constexpr bool has(int64_t token, int64_t position) const {
    return bits == nullptr || (bits[position / 64 * stride + token] >> (position % 64) & 1) != 0;
  }
  // Behind the words: bit w % 64 of [w / 64][t] says whether any token of the tile that begins at
  // token t attends to a key of tile w. Tokens within a tile have no bits.
  constexpr bool has_tile(int64_t token, int64_t tile) const {
    return bits == nullptr || (bits[(words + tile / 64) * stride + token] >> (tile % 64) & 1) != 0;
  }
  // The mask of the tokens from `token` on, the first of a sequence.
  constexpr SelectionMask from(int64_t token) const {
    return {bits == nullptr ? nullptr : bits + token, stride, words};
  }
};

// Words of a token in a batch whose longest sequence has `longest` tokens, and all words of a
// token, those of its tiles included.
constexpr int64_t selection_words(int64_t longest) {
  return (longest + SelectionMask::kTile - 1) / SelectionMask::kTile;
}
constexpr int64_t selection_words_in_all(int64_t longest) {
  return selection_words(longest) + selection_words(selection_words(longest));
}

}  // namespace tamis
