// A call on its way: its answers in the engine, its reply to the client.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/engine_thread.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/reply.h"

namespace tamis::server {

class RunningCall : public std::enable_shared_from_this<RunningCall> {
 public:
  // `slot` is let go when the call has ended.
  RunningCall(EngineThread& engine, Metrics& metrics, const ServedModel& model, Call call,
              std::unique_ptr<Reply> reply, std::shared_ptr<Exchange> exchange,
              std::shared_ptr<void> slot);
  ~RunningCall();

  void start(std::chrono::steady_clock::time_point arrival);

 private:
  using Clock = std::chrono::steady_clock;
  struct Answer;

  void on_event(size_t index, EngineEvent event);
  void on_token(size_t index, EngineEvent event);
  void on_accepted();
  void end_answer(size_t index, Clock::time_point at);
  void finish();
  void fail(const ApiError& error);
  void cancel_all();
  CallSummary summary() const;
  void observe(const CallSummary& summary);
  std::span<const SampledToken> unsent_tokens(Answer& answer) const;

  EngineThread& engine_;
  Metrics& metrics_;
  Call call_;
  std::unique_ptr<Reply> reply_;
  std::shared_ptr<Exchange> exchange_;
  std::shared_ptr<void> slot_;
  std::vector<std::unique_ptr<Answer>> answers_;
  Clock::time_point arrival_, accepted_, first_, last_;
  size_t left_ = 0;
  bool started_ = false, ended_ = false;
};

}  // namespace tamis::server
