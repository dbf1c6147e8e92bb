// The engine on a thread of its own. Other threads hand in requests and get events back; nothing
// that a request does ends the thread or another request.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/prompt_scorer.h"
#include "server/metrics.h"

namespace tamis::server {

struct EngineEvent {
  enum class Kind : uint8_t {
    kAccepted,  // the engine has taken the request
    kScored,    // `prompt` holds the log-probabilities of the prompt's tokens
    kProgress,  // a part of the prompt has been read
    kToken,     // a token, the end, or both
    kRefused,   // the request is wrong: `error` says how
    kBroken,    // the machine failed: `error` says how
  };
  Kind kind = Kind::kToken;
  TokenEvent token = {};
  std::vector<SampledToken> prompt = {};
  int64_t cached = 0;     // prompt tokens that came from the cache
  int64_t processed = 0;  // prompt tokens read so far, cached ones too
  std::string error = {};
  std::chrono::steady_clock::time_point at = {};
};

// Called on the engine thread: must only pass the event on.
using EngineSink = std::function<void(EngineEvent)>;

struct EngineJob {
  Request request;
  bool score_prompt = false;  // kScored comes before the tokens
  bool progress = false;      // kProgress is wanted
};

class EngineThread {
 public:
  EngineThread(Engine& engine, PromptScorer* scorer, Metrics& metrics);
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // Returns a number for cancel(). The last event is kRefused, kBroken, or a kToken that finishes.
  int64_t submit(EngineJob job, EngineSink sink);
  // The request's last event says kCancelled, unless it has ended already.
  void cancel(int64_t ticket);

  EngineGauges gauges() const;
  // False when there is work and no pass has ended for `limit`.
  bool healthy(std::chrono::milliseconds limit) const;
  // Ends the thread; running requests get kBroken.
  void stop();

 private:
  struct Active;
  struct Command {
    int64_t ticket = 0;
    bool cancel = false;
    EngineJob job = {};
    EngineSink sink = {};
  };

  void loop();
  bool take_commands();
  void accept(Command command);
  void start(Active& a, Request request);
  void step_engine();
  void step_scorer();
  void finish_scoring(Active& a);
  void deliver(TokenEvent event);
  void report_progress();
  void fail_all(const std::string& why);
  void publish();

  Engine& engine_;
  PromptScorer* scorer_;
  Metrics& metrics_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> commands_;
  EngineGauges gauges_;
  bool stop_ = false;

  std::atomic<int64_t> next_ticket_{1}, pending_{0};
  std::atomic<std::chrono::steady_clock::rep> last_pass_{0};

  // Of the thread alone.
  std::map<int64_t, std::unique_ptr<Active>> active_;  // by ticket
  std::map<int64_t, Active*> by_number_;               // by the engine's number
  std::deque<Active*> to_score_;
  int64_t scoring_ = 0;  // the ticket whose prompt the scorer holds
  std::vector<TokenEvent> events_;
  double step_seconds_ = 0, busy_seconds_ = 0;
  std::chrono::steady_clock::time_point woke_;
  std::thread thread_;
};

}  // namespace tamis::server
