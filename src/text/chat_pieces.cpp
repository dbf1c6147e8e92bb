#include "text/chat_pieces.h"

#include <array>

#include "text/chat_markers.h"

namespace tamis::chat {
namespace {

constexpr std::array kMarkers = {
    kBos,
    kEos,
    kUser,
    kAssistant,
    kThinkStart,
    kThinkEnd,
    kDsml,
    kToolCallsBegin,
    kToolCallsEnd,
    kToolCallBegin,
    kToolCallEnd,
    kToolSep,
    kToolOutputBegin,
    kToolOutputEnd,
};

// The marker that text starts with; empty if none.
std::string_view leading_marker(std::string_view text) {
  for (const std::string_view marker : kMarkers) {
    if (text.substr(0, marker.size()) == marker) return marker;
  }
  return {};
}

}  // namespace

void PieceBuilder::plain(std::string_view text) {
  if (text.empty()) return;
  if (pieces_.empty() || pieces_.back().special) {
    pieces_.push_back({std::string(text), false});
  } else {
    pieces_.back().text += text;
  }
}

void PieceBuilder::special(std::string_view marker) {
  pieces_.push_back({std::string(marker), true});
}

void PieceBuilder::format(std::string_view text) {
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    const std::string_view marker = leading_marker(text.substr(i));
    if (marker.empty()) {
      ++i;
      continue;
    }
    plain(text.substr(start, i - start));
    special(marker);
    i += marker.size();
    start = i;
  }
  plain(text.substr(start));
}

}  // namespace tamis::chat
