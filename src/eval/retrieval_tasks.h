// Questions whose answer stands somewhere in a long prompt: the tasks of `tamis eval retrieval`.
//
//   key-value   lines "brave-paper = 730264", then "What is the value of brave-paper?"
//   needle      a text with the line "The secret code of Lisbon is 730264." in it, then "What is
//               the secret code of Lisbon?"
// They are those the bundled model was trained on, with other words. A case is a function of its
// arguments and the seed alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tamis {

enum class RetrievalTask { kKeyValue, kNeedle };

// "kv", "needle"; UsageError for another name.
RetrievalTask retrieval_task_from_name(std::string_view name);
std::string_view retrieval_task_name(RetrievalTask task);

struct RetrievalCase {
  std::string question;  // what the user says
  std::string answer;
  double depth = 0;  // where in the context the answer stands: 0 begin, 1 end
};

class RetrievalCases {
 public:
  // `text` is the haystack of needle cases, cut at its line ends. InputError if it has no line.
  RetrievalCases(const Tokenizer& tokenizer, std::string_view text, uint64_t seed);

  // Case `index` with a question of at most `tokens` tokens, as near as whole lines allow.
  // UsageError if not even two lines fit.
  RetrievalCase make(RetrievalTask task, int64_t tokens, int64_t index) const;

 private:
  struct Line {
    std::string text;
    int64_t tokens = 0;
  };
  class Random;

  int64_t count(const std::string& text) const;
  RetrievalCase key_value(int64_t tokens, Random& random) const;
  RetrievalCase needle(int64_t tokens, Random& random) const;

  const Tokenizer& tokenizer_;
  std::vector<Line> haystack_;
  uint64_t seed_;
};

}  // namespace tamis
