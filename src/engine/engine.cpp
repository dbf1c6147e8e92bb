#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "engine/timed_selector.h"

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

constexpr int64_t kMaxReads = 64;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

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
  if (options.speculative_tokens == 0) return;
  drafter_ = std::make_unique<Drafter>(model, context, cache_, options.speculative_tokens);
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
    if (!s->decoding()) s->drafts.clear();
    const auto guessed = static_cast<int64_t>(s->drafts.size());
    slices_.push_back(
        {static_cast<int64_t>(ids_.size()), s->taken + guessed, s->in_prompt() && native()});
    tables_.push_back({s->cache.pages.data()});
    for (int64_t i = 0; i < s->taken + guessed; ++i) {
      const int64_t p = s->cache.length + i;
      ids_.push_back(i < s->taken ? s->tokens[static_cast<size_t>(p)]
                                  : s->drafts[static_cast<size_t>(i - s->taken)]);
      position_.push_back(static_cast<int32_t>(p));
      sequence_.push_back(static_cast<int32_t>(s->slice));
    }
    s->logit_row = s->probed = -1;
    if (s->taken == s->left()) {
      s->logit_row = static_cast<int64_t>(logit_rows_.size());
      for (int64_t i = guessed; i >= 0; --i) {
        logit_rows_.push_back(static_cast<int32_t>(static_cast<int64_t>(ids_.size()) - 1 - i));
      }
      probe_tokens(*s, 1 + guessed);
    }
  }
}

// The attention of a token is what the next one is drawn from.
void Engine::probe_tokens(Sequence& s, int64_t rows) {
  recall_due_ += options_.recall_sample;
  const bool recall = recall_due_ >= 1;
  if (recall) recall_due_ -= 1;
  if (!recall && s.request.top_reads == 0) return;
  s.probed = static_cast<int64_t>(probe_.size());
  for (int64_t i = 0; i < (s.request.top_reads > 0 ? rows : 1); ++i) {
    const int32_t token = logit_rows_[static_cast<size_t>(s.logit_row + i)];
    probe_.add(
        {token, position_[static_cast<size_t>(token)], s.request.top_reads, recall && i == 0});
  }
}

// Logits come to the host only if one of the requests needs them there: for log-probabilities, for
// a constraint, on the CPU for all but the largest, and where a penalty of a guess depends on
// whether the one before it comes true.
void Engine::choose_results(Pass pass) {
  draws_.clear();
  edits_.clear();
  const bool device = context_.device() != nullptr;
  best_only_ = std::all_of(pass.begin(), pass.end(), [&](const Sequence* s) {
    if (s->logit_row < 0) return true;
    if (s->matcher) return false;
    if (!device) return s->sampler.takes_largest();
    return s->sampler.wants_id_alone() && (s->drafts.empty() || !s->sampler.remembers_tokens());
  });
  const bool all_largest = std::all_of(pass.begin(), pass.end(), [](const Sequence* s) {
    return s->logit_row < 0 || s->sampler.takes_largest();
  });
  if (!best_only_ || all_largest) return;
  for (const Sequence* s : pass) {
    for (size_t i = 0; s->logit_row >= 0 && i <= s->drafts.size(); ++i) {
      draws_.push_back(s->sampler.draw(i, edits_));
    }
  }
}

void Engine::run_batch(const Selector& selector) {
  const size_t logits = logit_rows_.size() * static_cast<size_t>(model_.config().vocab_size);
  if (!best_only_ && logits_.size() < logits) logits_.resize(logits);
  if (best_.size() < logit_rows_.size()) best_.resize(logit_rows_.size());
  failed_.assign(slices_.size(), -1);
  const size_t states = ids_.size() * static_cast<size_t>(model_.config().hidden_size);
  if (drafter_ != nullptr && hidden_.size() < states) hidden_.resize(states);
  Batch b;
  b.tokens = {static_cast<int64_t>(ids_.size()), sequence_.data(), position_.data(),
              tables_.data()};
  b.ids = ids_.data();
  b.sequences = slices_;
  b.kv = cache_.view();
  b.logit_rows = logit_rows_;
  b.logits = best_only_ ? nullptr : logits_.data();
  b.best = best_only_ ? best_.data() : nullptr;
  b.draws = draws_;
  b.edits = edits_;
  b.hidden = drafter_ != nullptr ? hidden_.data() : nullptr;
  b.failed_layer = failed_.data();
  Observer* observer = probe_.size() == 0 ? nullptr : &probe_;
  const auto begin = std::chrono::steady_clock::now();
  if (counts_.passes % kTimedPasses == 0) {
    const TimedSelector timed(selector);
    model_.model().forward(context_, b, timed, act_, observer);
    counts_.timed_seconds += seconds_since(begin);
    counts_.indexer_seconds += timed.uses_indexer() ? timed.seconds() : 0;
  } else {
    model_.model().forward(context_, b, selector, act_, observer);
  }
  counts_.model_seconds += seconds_since(begin);
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
    choose_results(pass);
    run_batch(*pass.front()->selector);
  } catch (const std::exception& e) {
    if (model_.group().size() > 1) throw;
    if (pass.size() == 1) {
      TokenEvent event;
      event.finish = FinishReason::kError;
      // What the machine says is for its operator; the sender may be a stranger.
      log_warning(std::string("a forward pass failed: ") + e.what());
      event.error = "a forward pass failed";
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
  scheduler_.finish(s, event.finish != FinishReason::kError && !s.unfollowed);
  events.push_back(std::move(event));
}

void Engine::sample(Sequence& s, int64_t row, TokenEvent& event) {
  const int64_t vocab = model_.config().vocab_size;
  if (best_only_) {
    s.sampler.take(best_[static_cast<size_t>(s.logit_row + row)], event.token);
  } else {
    const float* logits = logits_.data() + (s.logit_row + row) * vocab;
    s.sampler.sample(logits, s.allowed(vocab, allowed_), scratch_, event.token);
  }
  s.tokens.push_back(event.token.id);
  ++counts_.generated_tokens;
  if (s.is_stop(event.token.id)) {
    event.finish = FinishReason::kStop;
    return;
  }
  if (s.matcher) {
    s.matcher->accept(event.token.id);
    s.matcher->commit();
    if (s.matcher->finished()) event.finish = FinishReason::kStop;
  }
  if (event.finish == FinishReason::kNone && s.room() <= 0) event.finish = FinishReason::kLength;
}

// One token, and one more for each guess before it that came true: each is drawn from the logits
// that it would have been drawn from alone. True if the request ends, with `event`.
bool Engine::sample_tokens(Sequence& s, TokenEvent& event, std::vector<TokenEvent>& events) {
  const auto guessed = static_cast<int64_t>(s.drafts.size());
  int64_t hits = 0;
  bool right = true;
  while (right) {
    event = {};
    event.request = s.number;
    event.cached_tokens = s.cached;
    try {
      sample(s, hits, event);
    } catch (const InputError& error) {
      event.finish = FinishReason::kError;
      event.error = error.what();
      event.refused = true;
    }
    if (s.probed >= 0 && (hits == 0 || s.request.top_reads > 0)) {
      event.token.reads = probe_.reads(static_cast<size_t>(s.probed + hits));
    }
    right = hits < guessed && event.token.id == s.drafts[static_cast<size_t>(hits)];
    if (right) ++counts_.speculation.at[static_cast<size_t>(hits)];
    if (event.finish != FinishReason::kNone) break;
    events.push_back(std::move(event));
    if (right) ++hits;
  }
  s.fed += hits;
  if (guessed > 0) {
    ++counts_.speculation.drafts;
    counts_.speculation.tokens += guessed;
    counts_.speculation.accepted += hits + (right ? 1 : 0);
  }
  if (event.finish == FinishReason::kStop && !s.is_stop(event.token.id)) {
    // The constraint is complete with this token, which is part of the text; a stop id is not.
    event.finish = FinishReason::kNone;
    events.push_back(std::exchange(event, {}));
    event.finish = FinishReason::kStop;
  }
  return event.finish != FinishReason::kNone;
}

void Engine::finish_tokens(Pass pass, std::vector<TokenEvent>& events) {
  followed_.clear();
  ending_.clear();
  for (Sequence* s : pass) {
    const int32_t failed = failed_[s->slice];
    if (failed >= 0) {
      TokenEvent e;
      e.finish = FinishReason::kError;
      e.error =
          failed == model_.config().num_layers()
              ? "the final norm or the head gave a result that is not a finite number"
              : "layer " + std::to_string(failed) + " gave a result that is not a finite number";
      end(*s, std::move(e), events);
      continue;
    }
    if (!s->decoding()) counts_.prefill_tokens += s->taken;
    s->fed = s->taken;
    TokenEvent e;
    s->ended = s->logit_row >= 0 && sample_tokens(*s, e, events);
    scheduler_.advance(*s, s->fed);
    if (e.finish != FinishReason::kError) followed_.push_back(s);
    if (s->ended) ending_.emplace_back(s, std::move(e));
  }
  if (drafter_ != nullptr && !followed_.empty()) draft(followed_);
  // Only now: the drafting layer has put its entries into their pages.
  for (auto& [s, e] : ending_) end(*s, std::move(e), events);
}

// The answers are out; a failure here costs guesses, and a place in the prefix cache. Several ranks
// must stay in step.
void Engine::draft(Pass pass) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    drafter_->follow(pass, slices_, hidden_.data(), *pass.front()->selector, act_);
  } catch (const std::exception& e) {
    if (model_.group().size() > 1) throw;
    if (pass.size() == 1) {
      pass.front()->unfollowed = true;
      return log_warning(std::string("guessing ahead failed: ") + e.what());
    }
    for (size_t i = 0; i < pass.size(); ++i) draft(pass.subspan(i, 1));
    return;
  }
  counts_.model_seconds += seconds_since(begin);
  if (!options_.change_drafts) return;
  for (Sequence* s : pass) {
    if (!s->ended && s->decoding()) options_.change_drafts(s->number, s->tokens, s->drafts);
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
