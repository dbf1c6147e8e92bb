// Builds a prompt piece by piece, keeping apart what the format writes and what users wrote.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"

namespace tamis::chat {

class PieceBuilder {
 public:
  // Text of a user, a tool or a model: never read as a marker.
  void plain(std::string_view text);
  // Text of the format: every marker in it becomes a special piece.
  void format(std::string_view text);

  std::vector<PromptPiece> take() { return std::move(pieces_); }

 private:
  void special(std::string_view marker);

  std::vector<PromptPiece> pieces_;
};

}  // namespace tamis::chat
