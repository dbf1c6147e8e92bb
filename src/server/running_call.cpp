#include "server/running_call.h"

#include <algorithm>

#include "base/error.h"

namespace tamis::server {
namespace {

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

struct RunningCall::Answer {
  Answer(const Tokenizer& tokenizer, const GenerationOptions& options)
      : generation(tokenizer, options) {}

  Generation generation;
  const std::vector<int32_t>* prompt = nullptr;
  std::vector<SampledToken> scores;
  int64_t ticket = 0, cached = 0;
  size_t sent = 0;  // tokens whose log-probabilities went out
  bool done = false;
  Clock::time_point last = {};
};

RunningCall::RunningCall(EngineThread& engine, Metrics& metrics, const ServedModel& model,
                         Call call, std::unique_ptr<Reply> reply,
                         std::shared_ptr<Exchange> exchange, std::shared_ptr<void> slot)
    : engine_(engine),
      metrics_(metrics),
      call_(std::move(call)),
      reply_(std::move(reply)),
      exchange_(std::move(exchange)),
      slot_(std::move(slot)) {
  for (const auto& prompt : call_.prompts) {
    for (int64_t i = 0; i < call_.n; ++i) {
      answers_.push_back(std::make_unique<Answer>(model.tokenizer, call_.generation));
      answers_.back()->prompt = &prompt;
    }
  }
  left_ = answers_.size();
}

RunningCall::~RunningCall() = default;

void RunningCall::start(Clock::time_point arrival) {
  arrival_ = arrival;
  exchange_->on_close([weak = weak_from_this()] {
    if (const auto self = weak.lock()) {
      self->metrics_.cancelled.fetch_add(1);
      self->cancel_all();
    }
  });
  for (size_t i = 0; i < answers_.size(); ++i) {
    EngineJob job;
    job.request = call_.request;
    job.request.prompt = *answers_[i]->prompt;
    // Answers to one prompt differ, and each is what a single request with that seed gives.
    job.request.sampling.seed += i % static_cast<size_t>(call_.n);
    job.request.sampling.logprob = call_.generation.logprobs;
    job.score_prompt = call_.score_prompt;
    job.progress = call_.progress && i == 0;
    metrics_.prompt_tokens.fetch_add(static_cast<int64_t>(job.request.prompt.size()));
    // The exchange orders the events, and keeps them off the engine's thread.
    answers_[i]->ticket =
        engine_.submit(std::move(job), [self = shared_from_this(), i](EngineEvent event) {
          self->exchange_->post(
              [self, i, e = std::move(event)]() mutable { self->on_event(i, std::move(e)); });
        });
  }
}

void RunningCall::on_event(size_t index, EngineEvent event) {
  if (ended_) return;
  switch (event.kind) {
    case EngineEvent::Kind::kAccepted:
      accepted_ = event.at;
      return on_accepted();
    case EngineEvent::Kind::kScored:
      answers_[index]->scores = std::move(event.prompt);
      return;
    case EngineEvent::Kind::kProgress:
      if (call_.stream && started_) {
        exchange_->write(
            reply_->progress({static_cast<int64_t>(answers_[index]->prompt->size()), event.cached,
                              event.processed, seconds(event.at - accepted_)}));
      }
      return;
    case EngineEvent::Kind::kRefused:
      return fail(from_input_error(event.error, ""));
    case EngineEvent::Kind::kBroken:
      return fail(ApiError(500, event.error));
    case EngineEvent::Kind::kToken:
      return on_token(index, std::move(event));
  }
}

void RunningCall::on_accepted() {
  if (started_) return;
  started_ = true;
  if (!call_.stream) return;
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers.push_back({"X-Accel-Buffering", "no"});
  exchange_->begin(std::move(head), reply_->ping());
  exchange_->write(reply_->start(static_cast<int>(answers_.size()),
                                 static_cast<int64_t>(call_.prompts.front().size())));
}

std::span<const SampledToken> RunningCall::unsent_tokens(Answer& a) const {
  const auto& all = a.generation.result().tokens;
  const auto fresh = std::span(all).subspan(std::min(a.sent, all.size()));
  a.sent = all.size();
  return fresh;
}

void RunningCall::on_token(size_t index, EngineEvent event) {
  Answer& a = *answers_[index];
  if (a.done) return;
  a.cached = event.cached;
  if (event.token.finish == FinishReason::kError) {
    // In a stream the status has gone; the event says the same.
    if (event.token.refused) {
      return fail(ApiError(400, event.token.error, call_.answer_field, "constraint_too_complex"));
    }
    return fail(ApiError(500, event.token.error));
  }
  if (event.token.finish == FinishReason::kCancelled) {
    return fail(ApiError(500, "the request was cancelled"));
  }
  if (event.token.token.id >= 0) {
    if (first_ == Clock::time_point{}) first_ = event.at;
    if (a.last != Clock::time_point{}) metrics_.inter_token.add(seconds(event.at - a.last));
    a.last = last_ = event.at;
  }
  std::vector<OutputEvent> parts;
  a.generation.push(event.token, parts);
  if (call_.stream && !parts.empty()) {
    const size_t sent = a.sent;
    std::string text = reply_->parts(static_cast<int>(index), parts, unsent_tokens(a));
    if (text.empty()) {
      a.sent = sent;
    } else {
      exchange_->write(std::move(text));
    }
  }
  if (a.generation.wants_cancel()) engine_.cancel(a.ticket);
  if (a.generation.finished()) end_answer(index, event.at);
}

void RunningCall::end_answer(size_t index, Clock::time_point at) {
  Answer& a = *answers_[index];
  a.done = true;
  last_ = at;
  metrics_.count_finished(a.generation.result().finish);
  if (call_.stream) {
    exchange_->write(
        reply_->choice_end(static_cast<int>(index), a.generation.result(), unsent_tokens(a)));
  }
  if (--left_ == 0) finish();
}

CallSummary RunningCall::summary() const {
  CallSummary s;
  for (const auto& prompt : call_.prompts) s.prompt_tokens += static_cast<int64_t>(prompt.size());
  for (const auto& a : answers_) {
    s.results.push_back(&a->generation.result());
    s.scores.push_back(a->scores);
    s.prompts.push_back(a->prompt);
    s.completion_tokens += a->generation.result().token_count;
    s.reasoning_tokens += a->generation.result().reasoning_tokens;
    s.cached_tokens = std::max(s.cached_tokens, a->cached);
  }
  s.timings.queue_s = seconds(accepted_ - arrival_);
  s.timings.prompt_s = first_ > accepted_ ? seconds(first_ - accepted_) : 0;
  s.timings.predict_s = last_ > first_ ? seconds(last_ - first_) : 0;
  s.timings.prompt_tokens = s.prompt_tokens;
  s.timings.cached_tokens = s.cached_tokens;
  s.timings.predicted_tokens = s.completion_tokens;
  return s;
}

void RunningCall::finish() {
  ended_ = true;
  const CallSummary s = summary();
  observe(s);
  if (call_.stream) {
    exchange_->write(reply_->end(s));
    exchange_->end();
  } else {
    HttpResponse response;
    response.body = reply_->whole(s);
    exchange_->respond(std::move(response));
  }
  slot_ = nullptr;
}

void RunningCall::observe(const CallSummary& s) {
  metrics_.queue_time.add(s.timings.queue_s);
  metrics_.end_to_end.add(seconds(last_ - arrival_));
  if (first_ == Clock::time_point{}) return;
  metrics_.time_to_first_token.add(seconds(first_ - arrival_));
  metrics_.prefill_time.add(s.timings.prompt_s);
  metrics_.decode_time.add(s.timings.predict_s);
}

void RunningCall::fail(const ApiError& error) {
  if (ended_) return;
  if (error.status() >= 500) metrics_.failed.fetch_add(1);
  if (started_ && call_.stream) {
    exchange_->write(reply_->error(error));
    exchange_->end();
  } else {
    exchange_->respond(error_response(error, reply_->anthropic()));
  }
  cancel_all();
}

void RunningCall::cancel_all() {
  ended_ = true;
  for (const auto& a : answers_) {
    if (!a->done) engine_.cancel(a->ticket);
  }
  slot_ = nullptr;
}

}  // namespace tamis::server
