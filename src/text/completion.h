// A whole completion read at once, strictly: what tests, tools and training data need. A server
// streams through OutputParser instead, which never fails.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"

namespace tamis {

struct Completion {
  std::string content;
  std::string reasoning_content;
  std::vector<ToolCall> tool_calls;  // without ids: the model writes none
};

// `thinking`: the prompt opened a thought, which the text must close. For v3.2 this is the parser
// of the official encoder: the text must end as the model ends it, with <｜end▁of▁sentence｜>. For
// the others that marker may be absent. InputError says what is malformed.
Completion parse_completion(ChatFormat format, bool thinking, std::string_view text);

}  // namespace tamis
