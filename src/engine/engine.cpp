#include "engine/engine.h"

#include <algorithm>

#include "base/error.h"

namespace tamis {

struct Engine::Running {
  int64_t number = 0;
  Request request;
  Sampler sampler;
  CachedSequence cache;
  std::vector<int32_t> tokens;  // prompt and answer
  int64_t prompt = 0, cached = 0;
  bool cancelled = false;
  // This step: tokens given to the model, and the row of its logits (-1: none yet).
  int64_t taken = 0, logit_row = -1;
  size_t slice = 0;

  Running(int64_t n, Request r, int64_t vocab)
      : number(n),
        request(std::move(r)),
        sampler(request.sampling, vocab, request.prompt),
        tokens(request.prompt),
        prompt(static_cast<int64_t>(request.prompt.size())) {
    tokens.reserve(static_cast<size_t>(prompt + request.max_tokens + 1));
  }
  int64_t left() const { return static_cast<int64_t>(tokens.size()) - cache.length; }
  bool in_prefill() const { return cache.length < prompt; }
};

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kError:
      return "error";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

Engine::Engine(const LoadedModel& model, KernelContext& context, const EngineOptions& options)
    : model_(model),
      context_(context),
      options_(options),
      selector_(make_selector(options.policy)),
      cache_(model.config(), options.cache),
      prefixes_(cache_) {
  const int64_t limit = model.config().max_position;
  if (options_.max_context <= 0 || options_.max_context > limit) options_.max_context = limit;
  options_.max_context = std::min(options_.max_context, options_.cache.pages * kPageTokens);
  if (options_.chunk < 1) throw UsageError("chunk: want at least 1 token");
}

Engine::~Engine() {
  for (auto& r : running_) cache_.release(r->cache);
}

int64_t Engine::submit(Request request) {
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length == 0) throw InputError("the prompt is empty: want at least one token");
  const int64_t vocab = model_.config().vocab_size;
  for (const int32_t id : request.prompt) {
    if (id < 0 || id >= vocab) {
      throw InputError("prompt: token id " + std::to_string(id) + ", the vocabulary has " +
                       std::to_string(vocab));
    }
  }
  if (request.max_tokens < 1) throw InputError("max_tokens: want at least 1");
  if (length >= options_.max_context) {
    throw InputError("the prompt has " + std::to_string(length) + " tokens, the context holds " +
                     std::to_string(options_.max_context) + " and needs room for an answer");
  }
  request.max_tokens = std::min(request.max_tokens, options_.max_context - length);
  waiting_.push_back(std::make_unique<Running>(next_request_, std::move(request), vocab));
  return next_request_++;
}

void Engine::cancel(int64_t request) {
  for (auto* list : {&waiting_, &running_}) {
    for (auto& r : *list) {
      if (r->number == request) r->cancelled = true;
    }
  }
}

int64_t Engine::cached_tokens(int64_t request) const {
  for (const auto& r : running_) {
    if (r->number == request) return r->cached;
  }
  return 0;
}

// Texts of different tenants do not meet, nor those that attend in different ways: their latents
// differ from the second layer on.
std::string Engine::root_of(const Request& request) const {
  const SelectionPolicy& p = options_.policy;
  std::string root(attention_name(p.kind));
  if (p.kind != AttentionKind::kDense) root += ' ' + std::to_string(p.topk);
  if (p.kind == AttentionKind::kRandom) root += ' ' + std::to_string(p.seed);
  return root + '\n' + request.cache_salt;
}

std::string Engine::audit() const {
  std::vector<const CachedSequence*> held;
  for (const auto* list : {&running_, &waiting_}) {
    for (const auto& r : *list) held.push_back(&r->cache);
  }
  return cache_.audit(held, prefixes_.kept());
}

// Oldest first, each with all the pages it can come to need, so that a running request never has
// to be thrown out.
void Engine::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_sequences) {
    Running& r = *waiting_.front();
    if (options_.prefix_cache && r.cache.pages.empty()) {
      r.cached = prefixes_.match(root_of(r.request), r.tokens, r.prompt - 1, r.cache);
    }
    const int64_t more = r.prompt + r.request.max_tokens - r.cache.length;
    prefixes_.make_room(pages_for(r.prompt + r.request.max_tokens) -
                        static_cast<int64_t>(r.cache.pages.size()));
    if (!cache_.reserve(r.cache, more)) {
      cache_.release(r.cache);
      r.cached = 0;
      return;
    }
    prefixes_.count(r.prompt, r.cached);
    running_.push_back(std::move(waiting_.front()));
    waiting_.erase(waiting_.begin());
  }
}

// Decoding requests take their one token each, then prefills share what is left of the chunk.
void Engine::build_batch() {
  ids_.clear();
  sequence_.clear();
  position_.clear();
  logit_rows_.clear();
  tables_.clear();
  slices_.clear();
  int64_t budget = options_.chunk;
  for (const bool prefill : {false, true}) {
    for (auto& running : running_) {
      Running& r = *running;
      if (r.in_prefill() != prefill) continue;
      r.taken = prefill ? std::min(r.left(), budget) : 1;
      r.logit_row = -1;
      if (r.taken == 0) continue;
      budget = std::max<int64_t>(budget - r.taken, prefill ? 0 : 1);
      r.slice = slices_.size();
      const bool expanded = prefill && model_.model().options().precision == Precision::kNative;
      slices_.push_back({static_cast<int64_t>(ids_.size()), r.taken, expanded});
      tables_.push_back({r.cache.pages.data()});
      for (int64_t i = 0; i < r.taken; ++i) {
        const int64_t p = r.cache.length + i;
        ids_.push_back(r.tokens[static_cast<size_t>(p)]);
        position_.push_back(static_cast<int32_t>(p));
        sequence_.push_back(static_cast<int32_t>(r.slice));
      }
      if (r.taken == r.left()) {
        r.logit_row = static_cast<int64_t>(logit_rows_.size());
        logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      }
    }
  }
}

void Engine::run_batch() {
  const size_t logits = logit_rows_.size() * static_cast<size_t>(model_.config().vocab_size);
  if (logits_.size() < logits) logits_.resize(logits);
  failed_.assign(slices_.size(), -1);
  Batch b;
  b.tokens = {static_cast<int64_t>(ids_.size()), sequence_.data(), position_.data(),
              tables_.data()};
  b.ids = ids_.data();
  b.sequences = slices_;
  b.kv = cache_.view();
  b.logit_rows = logit_rows_;
  b.logits = logits_.data();
  b.failed_layer = failed_.data();
  model_.model().forward(context_, b, *selector_, act_);
}

void Engine::end(Running& r, FinishReason reason) {
  // What the native path decodes is not bit for bit what it would prefill: only prompts are kept.
  const bool exact = model_.model().options().precision == Precision::kExact;
  const int64_t keep = exact ? r.cache.length : std::min(r.cache.length, r.prompt);
  if (options_.prefix_cache && reason != FinishReason::kError) {
    prefixes_.insert(root_of(r.request), std::span(r.tokens).first(static_cast<size_t>(keep)),
                     r.cache, /*whole=*/true);
  }
  cache_.release(r.cache);
}

void Engine::finish_tokens(std::vector<TokenEvent>& events) {
  const int64_t vocab = model_.config().vocab_size;
  for (auto& running : running_) {
    Running& r = *running;
    if (r.taken == 0) continue;
    r.cache.length += r.taken;
    TokenEvent e;
    e.request = r.number;
    const int32_t failed = failed_[r.slice];
    if (failed >= 0) {
      e.finish = FinishReason::kError;
      e.error =
          failed == model_.config().num_layers()
              ? "the final norm or the head gave a result that is not a finite number"
              : "layer " + std::to_string(failed) + " gave a result that is not a finite number";
    } else if (r.logit_row >= 0) {
      r.sampler.sample(logits_.data() + r.logit_row * vocab, {}, scratch_, e.token);
      r.tokens.push_back(e.token.id);
      const auto& stops = r.request.stop_ids;
      if (std::find(stops.begin(), stops.end(), e.token.id) != stops.end()) {
        e.finish = FinishReason::kStop;
      } else if (static_cast<int64_t>(r.tokens.size()) - r.prompt >= r.request.max_tokens) {
        e.finish = FinishReason::kLength;
      }
    } else {
      continue;
    }
    if (e.finish != FinishReason::kNone) {
      end(r, e.finish);
      running = nullptr;
    }
    events.push_back(std::move(e));
  }
  std::erase(running_, nullptr);
}

void Engine::step(std::vector<TokenEvent>& events) {
  events.clear();
  for (auto* list : {&running_, &waiting_}) {
    for (auto& r : *list) {
      if (!r->cancelled) continue;
      events.push_back({r->number, {}, FinishReason::kCancelled, ""});
      end(*r, FinishReason::kCancelled);
      r = nullptr;
    }
    std::erase(*list, nullptr);
  }
  admit();
  build_batch();
  if (ids_.empty()) return;
  run_batch();
  finish_tokens(events);
}

}  // namespace tamis
