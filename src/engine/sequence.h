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
  bool unfollowed = false;  // the drafting layer lacks entries: not to be kept
  // This step: tokens given to the model, those of them and of its guesses that are now in the
  // cache, and the first row of its logits (-1: none yet).
  int64_t taken = 0, fed = 0, logit_row = -1;
  bool ended = false;
  int64_t probed = -1;          // its first row in the selection probe
  std::vector<int32_t> drafts;  // guessed to follow `tokens`; checked by the next pass
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
  bool is_stop(int32_t id) const {
    return std::find(request.stop_ids.begin(), request.stop_ids.end(), id) !=
           request.stop_ids.end();
  }
  // What the constraint allows, and the end of the text where it may be; empty: everything. In
  // `bits`, or nowhere. InputError if the constraint cannot be followed.
  TokenBits allowed(int64_t vocab, std::vector<uint64_t>& bits) {
    if (!matcher) return {};
    const auto mask = matcher->allowed();
    bits.assign(mask.begin(), mask.end());
    if (!matcher->accepting()) return bits;
    for (const int64_t id : request.stop_ids) {
      if (id >= 0 && id < vocab) bits[static_cast<size_t>(id) / 64] |= 1ULL << (id % 64);
    }
    return bits;
  }
  // Tokens that the answer may still have.
  int64_t room() const { return prompt + request.max_tokens - size(); }
  // Higher priority first, then the older.
  bool before(const Sequence& other) const {
    if (request.priority != other.request.priority) {
      return request.priority > other.request.priority;
    }
    return number < other.number;
  }
};

}  // namespace tamis
