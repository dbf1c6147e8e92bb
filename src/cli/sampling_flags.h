// Flags of sampling, for generate and chat.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/prompt.h"

namespace CLI {
class App;
}

namespace tamis::cli {

struct SamplingFlags {
  int64_t max_tokens = 256;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  uint64_t seed = 0;
  int64_t logprobs = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;

  void add_to(CLI::App& app);
  // The checkpoint's defaults, overridden by what was given.
  void apply(const GenerationDefaults& defaults, Request& request) const;
};

}  // namespace tamis::cli
