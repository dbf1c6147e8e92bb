#include "engine/text_stream.h"

#include <algorithm>

#include "base/error.h"

namespace tamis {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop)
    : decoder_(tokenizer, /*skip_special=*/true), stop_(std::move(stop)) {
  for (const std::string& s : stop_) {
    if (s.empty()) throw InputError("stop: an empty string stops everything");
  }
}

// Emits held_ up to the first stop string, or up to the longest tail that may begin one.
std::string TextStream::release(bool all) {
  size_t end = held_.size();
  for (const std::string& s : stop_) {
    const size_t at = held_.find(s);
    if (at == std::string::npos) continue;
    if (!stopped_ || at < end) found_ = s;
    stopped_ = true;
    end = std::min(end, at);
  }
  if (!stopped_ && !all) {
    for (const std::string& s : stop_) {
      for (size_t n = std::min(s.size() - 1, held_.size()); n > 0; --n) {
        if (held_.compare(held_.size() - n, n, s, 0, n) == 0) {
          end = std::min(end, held_.size() - n);
          break;
        }
      }
    }
  }
  std::string out = held_.substr(0, end);
  held_.erase(0, stopped_ ? held_.size() : end);
  return out;
}

std::string TextStream::push(int32_t id) {
  if (stopped_) return "";
  held_ += decoder_.push(id);
  return release(false);
}

std::string TextStream::finish() {
  if (stopped_) return "";
  held_ += decoder_.flush();
  return release(true);
}

}  // namespace tamis
