// From what a user gives to prompt ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace tamis {

// A raw prompt: special tokens written in it count as such, and the beginning-of-sentence token is
// put in front unless it is there already or add_bos is false.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const ModelConfig& config,
                                   std::string_view text, bool add_bos = true);

// A rendered chat: only the format's own markers become special tokens, whatever users wrote.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer,
                                 const std::vector<PromptPiece>& pieces);

// What generation_config.json says of sampling and of the ids that end a text; the checkpoint's
// config.json where it says nothing. temperature is 0 (greedy) unless do_sample is true.
struct GenerationDefaults {
  SamplingParams sampling;
  std::vector<int64_t> eos_ids;
};
GenerationDefaults read_generation_defaults(const Checkpoint& checkpoint,
                                            const ModelConfig& config);

}  // namespace tamis
