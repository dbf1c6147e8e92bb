// The HTTP/1.1 side of the server: sockets, TLS, time limits, keep-alive, streams, draining.
//
//   HttpServer server(options, service);   // listens from here on
//   server.run();                          // until drain() has finished or stop() was called
//
// A slow or silent client costs one connection and its buffers, never a thread. A client that goes
// away is noticed while its answer is being made (Exchange::on_close).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "server/http.h"
#include "server/http_parser.h"

namespace tamis::server {

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;  // 0: any free one
  int threads = 2;
  HttpLimits limits;
  int64_t max_connections = 4096;
  int64_t body_budget = int64_t{256} << 20;  // bytes of request bodies that are being read
  std::string tls_certificate, tls_key;      // PEM files; both or neither
  std::chrono::milliseconds header_timeout{10'000}, idle_timeout{60'000};
  std::chrono::milliseconds write_timeout{30'000}, ping_interval{10'000};
  std::chrono::milliseconds body_grace{10'000};  // from then on at least min_body_rate
  int64_t min_body_rate = 1000;                  // bytes per second
  int64_t max_unsent = 8 << 20;                  // of a stream; more ends it
};

class HttpServer {
 public:
  // DeviceError if the address cannot be had; InputError for a certificate that cannot be read.
  HttpServer(const HttpOptions& options, HttpService& service);
  ~HttpServer();

  uint16_t port() const;
  // Serves on this thread and options.threads - 1 more. SIGTERM and SIGINT drain, a second one
  // stops, if signals is set; on_drain is called when draining begins.
  void run(bool signals, std::chrono::milliseconds drain_timeout,
           const std::function<void()>& on_drain);
  // From any thread: finish what runs, for at most the drain timeout of run(), then return.
  void drain();
  void stop();

  int64_t connections() const;

  struct State;  // of http_server.cpp

 private:
  std::unique_ptr<State> state_;
};

}  // namespace tamis::server
