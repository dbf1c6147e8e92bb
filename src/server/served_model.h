// The model that a server serves, as the routes need it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/loaded_model.h"
#include "engine/prompt.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace tamis::server {

struct ServedModel {
  const LoadedModel& model;
  Tokenizer tokenizer;
  std::optional<ChatFormat> format;  // none: /v1/completions only
  GenerationDefaults defaults;
  std::string name;
  SelectionPolicy policy = {};  // of requests that name none
  int64_t max_context = 0;
  int64_t created = 0;  // seconds since 1970
};

}  // namespace tamis::server
