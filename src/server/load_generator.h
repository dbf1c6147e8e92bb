// Load on a running server, as its clients feel it: streams of /v1/completions, in a closed loop
// (so many at a time) or an open one (so many a second, whether or not earlier ones are done).
//
//   const LoadReport report = run_load({.port = 8080, .requests = 200, .rate = 4});
//
// One thread serves all connections, plain HTTP only. It stands beside the server's code because
// it speaks the same protocol; it shares nothing with it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace tamis::server {

struct LoadOptions {
  std::string host = "127.0.0.1";  // an address
  uint16_t port = 8080;
  std::string api_key;
  int64_t requests = 100;
  int64_t concurrency = 8;    // closed loop
  double rate = 0;            // open loop: requests a second, at times of a Poisson process
  int64_t prompt_words = 64;  // of each request alone
  int64_t shared_words = 0;   // at the head of every prompt: what a prefix cache keeps
  int64_t max_tokens = 64;
  uint64_t seed = 0;       // of the words and the arrivals
  double timeout_s = 600;  // of one request
};

struct LoadResult {
  double arrival = 0;        // seconds since the start: when it was due, not when it was sent
  double first = 0;          // seconds from arrival to the first text; 0 if none came
  double total = 0;          // seconds from arrival to the end
  std::vector<double> gaps;  // seconds between two events with text
  int status = 0;            // 0: no answer
  bool complete = false;     // the stream had its end
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
};

// Of a list of values. Percentiles are values of the list: the smallest that so many do not pass.
struct Quantiles {
  double mean = 0, p50 = 0, p95 = 0, p99 = 0, max = 0;
};
Quantiles quantiles(std::vector<double> values);

struct LoadReport {
  std::vector<LoadResult> results;
  double seconds = 0;                             // from the start to the last end
  int64_t complete = 0, refused = 0, failed = 0;  // refused: 429 or 503
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  Quantiles first, gap, total;  // of those that are complete
};

// InputError for an address that is none; DeviceError if sockets fail. Refused and failed requests
// are part of the report. `progress` is called with the number of those that are over.
LoadReport run_load(const LoadOptions& options, const std::function<void(int64_t)>& progress = {});

// One answer as it comes in, in pieces of any size. For tests.
class StreamReader {
 public:
  // Takes more bytes of the answer; returns how many events with text they completed.
  int64_t push(std::string_view bytes);

  int status() const { return status_; }
  bool complete() const { return complete_; }  // [DONE] has come
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t cached_tokens() const { return cached_tokens_; }
  int64_t completion_tokens() const { return completion_tokens_; }

 private:
  bool read_head();
  void read_chunks();
  int64_t read_events();
  bool on_event(std::string_view data);

  std::string raw_, body_;
  size_t chunk_left_ = 0;
  bool chunked_ = false, complete_ = false;
  int status_ = 0;
  int64_t prompt_tokens_ = 0, cached_tokens_ = 0, completion_tokens_ = 0;
};

}  // namespace tamis::server
