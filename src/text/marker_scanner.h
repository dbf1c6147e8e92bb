// Finds marker strings in text that arrives in pieces, in linear time and with memory for one
// marker. Which markers count may change after each one: the parsers of model output are state
// machines on top of this.
//   scanner.watch(kMarkers);
//   scanner.push(piece, on_text, on_marker);   // any number of times
//   scanner.finish(on_text);
// on_text(text) returns how many bytes it took; taking fewer than all is for a caller that changed
// the markers in the middle, and the rest is scanned again with those. on_marker(index) gets the
// index into the watched list. The calls depend on the text alone but for where on_text is cut.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tamis {

class MarkerScanner {
 public:
  // `markers` must outlive the scanner; none is a prefix of another.
  void watch(std::span<const std::string_view> markers) { markers_ = markers; }

  template <typename OnText, typename OnMarker>
  void push(std::string_view text, OnText on_text, OnMarker on_marker) {
    while (!text.empty()) {
      if (held_.empty()) {
        const std::string_view run = text.substr(0, first_possible_start(text));
        if (!run.empty()) {
          text.remove_prefix(on_text(run));
          continue;
        }
      }
      held_ += text.front();
      text.remove_prefix(1);
      settle(on_text, on_marker);
    }
  }

  // What may still become a marker.
  std::string_view held() const { return held_; }
  void drop_held() { held_.clear(); }

  template <typename OnText>
  void finish(OnText on_text) {
    std::string held;
    held.swap(held_);
    std::string_view rest = held;
    while (!rest.empty()) rest.remove_prefix(on_text(rest));
  }

 private:
  // Gives up bytes from the front of what is held until the rest may still become a marker.
  template <typename OnText, typename OnMarker>
  void settle(OnText on_text, OnMarker on_marker) {
    while (!held_.empty()) {
      const Match match = match_held();
      if (match.whole) {
        held_.clear();
        on_marker(match.index);
      } else if (match.possible) {
        return;
      } else if (on_text(std::string_view(held_).substr(0, 1)) == 1) {
        held_.erase(0, 1);
      }
    }
  }

  struct Match {
    bool possible = false;
    bool whole = false;
    size_t index = 0;
  };
  Match match_held() const;
  size_t first_possible_start(std::string_view text) const;

  std::span<const std::string_view> markers_;
  std::string held_;
};

}  // namespace tamis
