#include "server/engine_thread.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace tamis::server {

using Clock = std::chrono::steady_clock;

struct EngineThread::Active {
  int64_t ticket = 0;
  int64_t number = -1;  // of the engine; -1 while the prompt is scored
  int64_t cached = 0;
  int64_t tokens = 0;
  bool wants_progress = false;
  int64_t processed = -1;
  Request request;  // while the prompt is scored
  EngineSink sink;

  void send(EngineEvent event) const {
    event.at = Clock::now();
    event.cached = cached;
    sink(std::move(event));
  }
};

EngineThread::EngineThread(Engine& engine, PromptScorer* scorer, Metrics& metrics)
    : engine_(engine), scorer_(scorer), metrics_(metrics) {
  publish();
  thread_ = std::thread([this] { loop(); });
}

EngineThread::~EngineThread() { stop(); }

void EngineThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

int64_t EngineThread::submit(EngineJob job, EngineSink sink) {
  const int64_t ticket = next_ticket_.fetch_add(1);
  if (pending_.fetch_add(1) == 0) last_pass_ = Clock::now().time_since_epoch().count();
  {
    const std::lock_guard lock(mutex_);
    commands_.push_back({ticket, false, std::move(job), std::move(sink)});
  }
  wake_.notify_one();
  return ticket;
}

void EngineThread::cancel(int64_t ticket) {
  {
    const std::lock_guard lock(mutex_);
    Command command;
    command.ticket = ticket;
    command.cancel = true;
    commands_.push_back(std::move(command));
  }
  wake_.notify_one();
}

EngineGauges EngineThread::gauges() const {
  const std::lock_guard lock(mutex_);
  return gauges_;
}

bool EngineThread::healthy(std::chrono::milliseconds limit) const {
  if (pending_ == 0) return true;
  const Clock::duration since =
      Clock::now().time_since_epoch() - Clock::duration(last_pass_.load());
  return since < limit;
}

void EngineThread::loop() {
  while (take_commands()) {
    if (!engine_.idle()) step_engine();
    if (!to_score_.empty()) step_scorer();
    const auto now = Clock::now();
    last_pass_ = now.time_since_epoch().count();
    busy_seconds_ += std::chrono::duration<double>(now - woke_).count();
    publish();
  }
  fail_all("the server is shutting down");
}

// Waits while there is nothing to do. False when the thread shall end.
bool EngineThread::take_commands() {
  std::deque<Command> commands;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(
        lock, [&] { return stop_ || !commands_.empty() || !engine_.idle() || !to_score_.empty(); });
    if (stop_) return false;
    woke_ = Clock::now();
    commands.swap(commands_);
  }
  for (Command& c : commands) {
    if (!c.cancel) {
      accept(std::move(c));
      continue;
    }
    const auto it = active_.find(c.ticket);
    if (it == active_.end()) continue;
    Active& a = *it->second;
    if (a.number >= 0) {
      engine_.cancel(a.number);
      continue;
    }
    // Being scored: the place in the queue goes, a half-scored prompt is overwritten by the next.
    std::erase(to_score_, &a);
    TokenEvent cancelled;
    cancelled.finish = FinishReason::kCancelled;
    a.send({.token = std::move(cancelled)});
    active_.erase(it);
    pending_.fetch_sub(1);
  }
  return true;
}

void EngineThread::accept(Command command) {
  auto owned = std::make_unique<Active>();
  Active& a = *owned;
  a.ticket = command.ticket;
  a.sink = std::move(command.sink);
  a.wants_progress = command.job.progress;
  active_.emplace(a.ticket, std::move(owned));
  if (command.job.score_prompt && scorer_ != nullptr) {
    a.request = std::move(command.job.request);
    to_score_.push_back(&a);
    return;
  }
  start(a, std::move(command.job.request));
}

void EngineThread::start(Active& a, Request request) {
  EngineEvent refused;
  try {
    a.number = engine_.submit(std::move(request));
    by_number_[a.number] = &a;
    a.send({.kind = EngineEvent::Kind::kAccepted});
    return;
  } catch (const InputError& e) {
    refused = {.kind = EngineEvent::Kind::kRefused, .error = e.what()};
  } catch (const UsageError& e) {
    refused = {.kind = EngineEvent::Kind::kRefused, .error = e.what()};
  } catch (const std::exception& e) {
    log_warning(std::string("a request could not be taken: ") + e.what());
    refused = {.kind = EngineEvent::Kind::kBroken, .error = "the machine has no room for it"};
  }
  a.send(std::move(refused));
  active_.erase(a.ticket);
  pending_.fetch_sub(1);
}

void EngineThread::step_engine() {
  const auto begin = Clock::now();
  try {
    engine_.step(events_);
  } catch (const std::exception& e) {
    // Which request it was is not known. None may go on with what the pass left behind.
    log_warning(std::string("a forward pass failed: ") + e.what());
    fail_all("a forward pass failed");
    return;
  }
  step_seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
  for (TokenEvent& e : events_) deliver(std::move(e));
  report_progress();
}

void EngineThread::deliver(TokenEvent event) {
  const auto it = by_number_.find(event.request);
  if (it == by_number_.end()) return;
  Active& a = *it->second;
  a.cached = std::max(a.cached, event.cached_tokens);
  if (event.token.id >= 0) {
    ++a.tokens;
    metrics_.generation_tokens.fetch_add(1);
  }
  const bool last = event.finish != FinishReason::kNone;
  a.send({.token = std::move(event)});
  if (!last) return;
  by_number_.erase(it);
  active_.erase(a.ticket);
  pending_.fetch_sub(1);
}

// Of prompts that take more than one pass.
void EngineThread::report_progress() {
  for (auto& [number, a] : by_number_) {
    if (!a->wants_progress || a->tokens > 0) continue;
    const RequestProgress p = engine_.progress(number);
    a->cached = p.cached_tokens;
    if (p.waiting || p.processed_tokens == a->processed) continue;
    a->processed = p.processed_tokens;
    EngineEvent event;
    event.kind = EngineEvent::Kind::kProgress;
    event.processed = p.processed_tokens;
    a->send(std::move(event));
  }
}

void EngineThread::step_scorer() {
  Active& a = *to_score_.front();
  EngineEvent failed;
  try {
    if (scoring_ != a.ticket) {
      scoring_ = a.ticket;
      scorer_->start(a.request.prompt, a.request.sampling.top_logprobs);
      a.send({.kind = EngineEvent::Kind::kAccepted});
    }
    if (!scorer_->step()) return;
    to_score_.pop_front();
    return finish_scoring(a);
  } catch (const InputError& e) {
    failed = {.kind = EngineEvent::Kind::kRefused, .error = e.what()};
  } catch (const UsageError& e) {
    failed = {.kind = EngineEvent::Kind::kRefused, .error = e.what()};
  } catch (const std::exception& e) {
    log_warning(std::string("scoring a prompt failed: ") + e.what());
    failed = {.kind = EngineEvent::Kind::kBroken, .error = "scoring the prompt failed"};
  }
  std::erase(to_score_, &a);
  a.send(std::move(failed));
  active_.erase(a.ticket);
  pending_.fetch_sub(1);
}

// One token more needs no second reading of the prompt.
void EngineThread::finish_scoring(Active& a) {
  a.send({.kind = EngineEvent::Kind::kScored, .prompt = scorer_->tokens()});
  const int64_t wanted = a.request.max_tokens;
  if (wanted > 1) return start(a, std::move(a.request));
  TokenEvent last;
  last.finish = FinishReason::kLength;
  if (wanted == 1) {
    last.token = scorer_->next(a.request.sampling);
    const auto& stops = a.request.stop_ids;
    if (std::find(stops.begin(), stops.end(), last.token.id) != stops.end()) {
      last.finish = FinishReason::kStop;
    }
    metrics_.generation_tokens.fetch_add(1);
  }
  a.send({.token = std::move(last)});
  active_.erase(a.ticket);
  pending_.fetch_sub(1);
}

void EngineThread::fail_all(const std::string& why) {
  for (auto& [ticket, a] : active_) {
    if (a->number >= 0) engine_.cancel(a->number);
    a->send({.kind = EngineEvent::Kind::kBroken, .error = why});
  }
  pending_.fetch_sub(static_cast<int64_t>(active_.size()));
  by_number_.clear();
  to_score_.clear();
  active_.clear();
}

void EngineThread::publish() {
  const EngineStats e = engine_.stats();
  EngineGauges g;
  g.running = e.running;
  g.waiting = e.waiting + static_cast<int64_t>(to_score_.size());
  g.pages_total = e.pages_total;
  g.pages_free = e.pages_free;
  g.pages_used = e.pages_used;
  g.pages_cached = e.pages_cached;
  g.steps = e.steps;
  g.prefix_queries = e.prefix.tokens;
  g.prefix_hits = e.prefix.hit_tokens;
  g.preemptions = e.preemptions;
  g.step_seconds = step_seconds_;
  g.busy_seconds = busy_seconds_;
  g.model_seconds = e.model_seconds;
  g.timed_seconds = e.timed_seconds;
  g.indexer_seconds = e.indexer_seconds;
  g.selection = e.selection;
  g.speculation = e.speculation;
  const std::lock_guard lock(mutex_);
  gauges_ = g;
}

}  // namespace tamis::server
