#include "text/marker_scanner.h"

#include <algorithm>

namespace tamis {

MarkerScanner::Match MarkerScanner::match_held() const {
  for (size_t i = 0; i < markers_.size(); ++i) {
    if (markers_[i].substr(0, held_.size()) == held_) {
      return {true, markers_[i].size() == held_.size(), i};
    }
  }
  return {};
}

size_t MarkerScanner::first_possible_start(std::string_view text) const {
  size_t first = text.size();
  for (const std::string_view marker : markers_) {
    first = std::min(first, text.substr(0, first).find(marker.front()));
  }
  return std::min(first, text.size());
}

}  // namespace tamis
