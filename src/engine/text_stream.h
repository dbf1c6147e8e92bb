// Turns a request's token ids into text as they come, and stops at a stop string.
//
// Never emits part of a character, nor text that may turn out to belong to a stop string; the stop
// string itself is not part of the text.
#pragma once

#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace tamis {

class TextStream {
 public:
  // Special tokens are left out of the text.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop);

  // The text that is certain now.
  std::string push(int32_t id);
  // The end of the tokens: what was held back.
  std::string finish();
  // A stop string has appeared: nothing more will come.
  bool stopped() const { return stopped_; }
  // The one that did; empty before that.
  const std::string& stop_string() const { return found_; }

 private:
  std::string release(bool all);

  StreamingDecoder decoder_;
  std::vector<std::string> stop_;
  std::string held_, found_;
  bool stopped_ = false;
};

}  // namespace tamis
