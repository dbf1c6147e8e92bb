#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace tamis {
namespace {

// Texts of different tenants do not meet, nor those that attend in different ways: their latents
// differ from the second layer on.
std::string root_of(const SelectionPolicy& p, const std::string& salt) {
  std::string root(attention_name(p.kind));
  if (p.kind != AttentionKind::kDense) root += ' ' + std::to_string(p.topk);
  if (p.kind == AttentionKind::kRandom) root += ' ' + std::to_string(p.seed);
  return root + '\n' + salt;
}

bool is_stop(const Request& r, int32_t id) {
  return std::find(r.stop_ids.begin(), r.stop_ids.end(), id) != r.stop_ids.end();
}

constexpr int64_t kMaxReads = 64;

SchedulerOptions scheduler_options(const EngineOptions& o, bool exact) {
  return {o.chunk, o.max_sequences, o.prefix_cache, exact};
}

}  // namespace

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
      cache_(model.config(), options.cache, context.device()),
      scheduler_(scheduler_options(options, !native()), cache_),
      probe_(model.config().num_layers(), context.device()) {
  const int64_t limit = model.config().max_position;
  if (options_.max_context <= 0 || options_.max_context > limit) options_.max_context = limit;
  options_.max_context = std::min(options_.max_context, options_.cache.pages * kPageTokens);
  make_selector(options_.policy);  // throws if it makes no sense
}

Engine::~Engine() = default;

void Engine::check(const Request& request) const {
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
  request.sampling.check(vocab);
  if (request.constraint != nullptr && request.constraint->vocab_size() != vocab) {
    throw UsageError("the constraint was compiled for another vocabulary");
  }
  if (request.top_reads < 0 || request.top_reads > kMaxReads) {
    throw InputError("top_reads: want 0 to " + std::to_string(kMaxReads));
  }
  if (request.top_reads > 0 && model_.group().size() > 1) {
    throw InputError("top_reads: works on one rank only");
  }
  if (!request.attention) return;
  const SelectionPolicy& p = *request.attention;
  if (p.kind != AttentionKind::kDense && (p.topk < 1 || p.topk > model_.config().max_position)) {
    throw InputError("index_topk: want 1 to " + std::to_string(model_.config().max_position));
  }
  if (p.kind == AttentionKind::kSparse && !model_.config().has_indexer()) {
    throw InputError("attention sparse: this model has no indexer");
  }
  if (p.kind == AttentionKind::kOracle && model_.group().size() > 1) {
    throw InputError("attention oracle: works on one rank only");
  }
}

bool Engine::queue_full() const {
  return options_.max_waiting > 0 &&
         static_cast<int64_t>(scheduler_.waiting().size()) >= options_.max_waiting;
}

int64_t Engine::submit(Request request) {
  check(request);
  if (queue_full()) throw UsageError("the queue is full");
  const auto length = static_cast<int64_t>(request.prompt.size());
  request.max_tokens = std::min(request.max_tokens, options_.max_context - length);
  auto s =
      std::make_unique<Sequence>(next_request_, std::move(request), model_.config().vocab_size);
  s->policy = s->request.attention.value_or(options_.policy);
  s->selector = make_selector(s->policy);
  if (s->request.constraint != nullptr) s->matcher.emplace(s->request.constraint);
  s->root = root_of(s->policy, s->request.cache_salt);
  scheduler_.add(std::move(s));
  return next_request_++;
}

const Sequence* Engine::find(int64_t request) const {
  for (const auto* list : {&scheduler_.running(), &scheduler_.waiting()}) {
    for (const auto& s : *list) {
      if (s->number == request) return s.get();
    }
  }
  return nullptr;
}

void Engine::cancel(int64_t request) {
  for (const auto* list : {&scheduler_.running(), &scheduler_.waiting()}) {
    for (const auto& s : *list) {
      if (s->number == request) s->cancelled = true;
    }
  }
}

RequestProgress Engine::progress(int64_t request) const {
  const Sequence* s = find(request);
  if (s == nullptr) return {};
  return {s->prompt, std::max<int64_t>(s->cached, 0), std::min(s->cache.length, s->prompt),
          s->cache.pages.empty()};
}

EngineStats Engine::stats() const {
  EngineStats s = counts_;
  s.running = static_cast<int64_t>(scheduler_.running().size());
  s.waiting = static_cast<int64_t>(scheduler_.waiting().size());
  s.max_waiting = options_.max_waiting;
  s.pages_total = cache_.total_pages();
  s.pages_free = cache_.free_pages();
  s.pages_used = cache_.used_pages();
  s.pages_cached = cache_.cached_pages();
  s.preemptions = scheduler_.preemptions();
  s.prefix = scheduler_.prefix_stats();
  s.selection = probe_.stats();
  return s;
}

void Engine::build_batch(Pass pass) {
  ids_.clear();
  sequence_.clear();
  position_.clear();
  logit_rows_.clear();
  tables_.clear();
  slices_.clear();
  probe_.clear();
  for (Sequence* s : pass) {
    s->slice = slices_.size();
    slices_.push_back({static_cast<int64_t>(ids_.size()), s->taken, s->in_prompt() && native()});
    tables_.push_back({s->cache.pages.data()});
    for (int64_t i = 0; i < s->taken; ++i) {
      const int64_t p = s->cache.length + i;
      ids_.push_back(s->tokens[static_cast<size_t>(p)]);
      position_.push_back(static_cast<int32_t>(p));
      sequence_.push_back(static_cast<int32_t>(s->slice));
    }
    s->logit_row = s->probed = -1;
    if (s->taken == s->left()) {
      s->logit_row = static_cast<int64_t>(logit_rows_.size());
      logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      probe_token(*s);
    }
  }
}

// The attention of the last token is what the next one is drawn from.
void Engine::probe_token(Sequence& s) {
  recall_due_ += options_.recall_sample;
  const bool recall = recall_due_ >= 1;
  if (recall) recall_due_ -= 1;
  if (!recall && s.request.top_reads == 0) return;
  s.probed = static_cast<int64_t>(probe_.size());
  probe_.add(
      {static_cast<int64_t>(ids_.size()) - 1, position_.back(), s.request.top_reads, recall});
}

void Engine::run_batch(const Selector& selector) {
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
  model_.model().forward(context_, b, selector, act_, probe_.size() == 0 ? nullptr : &probe_);
}

// Several ranks must stay in step, so that there a failure ends the engine.
void Engine::run(Pass pass, std::vector<TokenEvent>& events) {
  try {
    if (options_.before_pass) {
      std::vector<int64_t> requests;
      for (const Sequence* s : pass) requests.push_back(s->number);
      options_.before_pass(requests);
    }
    build_batch(pass);
    run_batch(*pass.front()->selector);
  } catch (const std::exception& e) {
    if (model_.group().size() > 1) throw;
    if (pass.size() == 1) {
      TokenEvent event;
      event.finish = FinishReason::kError;
      event.error = e.what();
      return end(*pass.front(), std::move(event), events);
    }
    for (size_t i = 0; i < pass.size(); ++i) run(pass.subspan(i, 1), events);
    return;
  }
  ++counts_.passes;
  finish_tokens(pass, events);
}

void Engine::end(Sequence& s, TokenEvent event, std::vector<TokenEvent>& events) {
  event.request = s.number;
  event.cached_tokens = std::max<int64_t>(s.cached, 0);
  ++counts_.finished[static_cast<size_t>(event.finish)];
  scheduler_.finish(s, event.finish != FinishReason::kError);
  events.push_back(std::move(event));
}

// What the constraint allows, and the end of the text where it may be.
TokenBits Engine::allowed(Sequence& s) {
  if (!s.matcher) return {};
  const auto mask = s.matcher->allowed();
  allowed_.assign(mask.begin(), mask.end());
  if (s.matcher->accepting()) {
    for (const int64_t id : s.request.stop_ids) {
      if (id < 0 || id >= model_.config().vocab_size) continue;
      allowed_[static_cast<size_t>(id) / 64] |= 1ULL << (id % 64);
    }
  }
  return allowed_;
}

void Engine::sample(Sequence& s, TokenEvent& event) {
  const float* logits = logits_.data() + s.logit_row * model_.config().vocab_size;
  s.sampler.sample(logits, allowed(s), scratch_, event.token);
  s.tokens.push_back(event.token.id);
  ++counts_.generated_tokens;
  if (is_stop(s.request, event.token.id)) {
    event.finish = FinishReason::kStop;
    return;
  }
  if (s.matcher) {
    s.matcher->accept(event.token.id);
    s.matcher->commit();
    if (s.matcher->finished()) event.finish = FinishReason::kStop;
  }
  if (event.finish == FinishReason::kNone && s.size() - s.prompt >= s.request.max_tokens) {
    event.finish = FinishReason::kLength;
  }
}

void Engine::finish_tokens(Pass pass, std::vector<TokenEvent>& events) {
  for (Sequence* s : pass) {
    TokenEvent e;
    const int32_t failed = failed_[s->slice];
    if (failed >= 0) {
      e.finish = FinishReason::kError;
      e.error =
          failed == model_.config().num_layers()
              ? "the final norm or the head gave a result that is not a finite number"
              : "layer " + std::to_string(failed) + " gave a result that is not a finite number";
      end(*s, std::move(e), events);
      continue;
    }
    if (!s->decoding()) counts_.prefill_tokens += s->taken;
    scheduler_.advance(*s);
    if (s->logit_row < 0) continue;
    e.request = s->number;
    e.cached_tokens = s->cached;
    try {
      sample(*s, e);
    } catch (const InputError& error) {
      e.finish = FinishReason::kError;
      e.error = error.what();
      e.refused = true;
    }
    if (e.finish == FinishReason::kStop && !is_stop(s->request, e.token.id)) {
      // The constraint is complete with this token, which is part of the text; a stop id is not.
      e.finish = FinishReason::kNone;
      events.push_back(std::exchange(e, {}));
      e.finish = FinishReason::kStop;
    }
    if (s->probed >= 0) e.token.reads = probe_.reads(static_cast<size_t>(s->probed));
    if (e.finish != FinishReason::kNone) {
      end(*s, std::move(e), events);
    } else {
      events.push_back(std::move(e));
    }
  }
}

void Engine::drop_cancelled(std::vector<TokenEvent>& events) {
  for (const auto* list : {&scheduler_.running(), &scheduler_.waiting()}) {
    for (const auto& s : *list) {
      if (!s->cancelled) continue;
      TokenEvent e;
      e.finish = FinishReason::kCancelled;
      end(*s, std::move(e), events);
    }
  }
  scheduler_.drop_finished();
}

void Engine::step(std::vector<TokenEvent>& events) {
  events.clear();
  ++counts_.steps;
  drop_cancelled(events);
  scheduler_.plan();
  pass_.clear();
  for (const auto& s : scheduler_.running()) {
    if (s->taken > 0) pass_.push_back(s.get());
  }
  // Requests that attend in the same way share a pass.
  const auto same = [](const Sequence* a, const Sequence* b) {
    return a->policy.kind == b->policy.kind && a->policy.topk == b->policy.topk &&
           a->policy.seed == b->policy.seed;
  };
  for (auto begin = pass_.begin(); begin != pass_.end();) {
    const auto end =
        std::partition(begin, pass_.end(), [&](const Sequence* s) { return same(*begin, s); });
    run({begin, end}, events);
    begin = end;
  }
  scheduler_.drop_finished();
  if (!options_.audit) return;
  if (const std::string wrong = audit(); !wrong.empty()) throw std::logic_error(wrong);
}

}  // namespace tamis
