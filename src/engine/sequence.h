// A request on its way through the engine. Internal to engine/.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/paged_cache.h"
#include "engine/request.h"

namespace tamis {

struct Sequence {
  int64_t number = 0;
  Request request;
  SelectionPolicy policy;
  std::shared_ptr<const Selector> selector;
  std::string root;  // of its text in the prefix cache
  Sampler sampler;
  std::optional<Matcher> matcher;
  CachedSequence cache;
  std::vector<int32_t> tokens;  // prompt and answer
  int64_t prompt = 0;           // tokens of it
  int64_t cached = -1;          // of the prompt, found in the prefix cache; -1: not admitted yet
  bool cancelled = false, prompt_kept = false;
  // This step: tokens given to the model, and the row of its logits (-1: none yet).
  int64_t taken = 0, logit_row = -1;
  int64_t probed = -1;  // its row in the selection probe
  size_t slice = 0;

  Sequence(int64_t n, Request r, int64_t vocab)
      : number(n),
        request(std::move(r)),
        sampler(request.sampling, vocab, request.prompt),
        tokens(request.prompt),
        prompt(static_cast<int64_t>(request.prompt.size())) {
    tokens.reserve(static_cast<size_t>(prompt + request.max_tokens + 1));
  }
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t left() const { return size() - cache.length; }
  bool in_prompt() const { return cache.length < prompt; }
  // All but the last token are in the cache, and that one is the model's own.
  bool decoding() const { return !in_prompt() && left() == 1; }
  // Higher priority first, then the older.
  bool before(const Sequence& other) const {
    if (request.priority != other.request.priority) {
      return request.priority > other.request.priority;
    }
    return number < other.number;
  }
};

}  // namespace tamis
