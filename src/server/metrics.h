// Numbers for operators, in Prometheus' text form under the names that dashboards know. Nothing in
// them comes from a request's text or from its sender.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "engine/request.h"
#include "engine/token_reads.h"

namespace tamis::server {

// Counts of values up to each bound, and their sum. Threads may share it.
class Histogram {
 public:
  void add(double seconds);
  void render(std::string& out, std::string_view name, std::string_view help) const;

 private:
  static constexpr std::array kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,  0.25,
                                         0.5,   1.0,    2.5,   5.0,  10.0,  25.0, 50.0, 100.0};
  mutable std::mutex mutex_;
  std::array<int64_t, kBounds.size() + 1> counts_{};
  double sum_ = 0;
};

// What the engine thread last saw.
struct EngineGauges {
  int64_t running = 0, waiting = 0;
  int64_t pages_total = 0, pages_used = 0, pages_free = 0, pages_cached = 0;
  int64_t steps = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // tokens
  int64_t preemptions = 0;
  double step_seconds = 0;
  double busy_seconds = 0, model_seconds = 0;  // of the engine's thread; of that, in forward passes
  double timed_seconds = 0, indexer_seconds = 0;  // of some passes; of that, in the indexer
  SelectionStats selection;
  SpeculationStats speculation;
};

struct Metrics {
  std::atomic<int64_t> prompt_tokens{0}, generation_tokens{0}, cancelled{0}, failed{0}, rejected{0};
  Histogram time_to_first_token, inter_token, end_to_end, queue_time, prefill_time, decode_time;

  void count_finished(std::string_view reason);
  void count_http(int status);
  std::string render(const EngineGauges& gauges, std::string_view version) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, int64_t, std::less<>> finished_;
  std::map<int, int64_t> http_;
};

}  // namespace tamis::server
