// A live server on a free port of the loopback address, on the bundled model; and plain sockets.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/group.h"
#include "engine/prompt_scorer.h"
#include "server/app.h"
#include "server/engine_thread.h"
#include "server/http_server.h"

namespace tamis::server {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// What is served, and how the engine differs from that of most tests.
struct LiveEngine {
  std::string folder = TAMIS_SOURCE_DIR "/models/tamis-mini";
  bool with_mtp = false;
  std::function<void(EngineOptions&)> change = [](EngineOptions&) {};
};

// A model, mapped once.
struct Model {
  explicit Model(const LiveEngine& e) : context(1), model(e.folder, options(e), single()) {}
  static LoadOptions options(const LiveEngine& e) {
    LoadOptions o;
    o.with_mtp = e.with_mtp;
    return o;
  }
  static std::shared_ptr<Group> single() { return single_group(); }
  KernelContext context;
  LoadedModel model;
};

// How many times longer a test waits for an answer in this build.
#if defined(__SANITIZE_THREAD__)
inline constexpr int kSlower = 15;
#else
inline constexpr int kSlower = 1;
#endif

class Live {
 public:
  explicit Live(AppOptions options = {}, HttpOptions http = {},
                std::optional<ChatFormat> format = std::nullopt, double recall_sample = 0,
                const LiveEngine& engine = {}, bool access_log = false)
      : model_(engine) {
    options.access_log = access_log;
    EngineOptions e;
    e.policy.topk = model_.model.config().index_topk;
    e.cache.pages = 257;
    e.chunk = 128;
    e.audit = true;
    e.recall_sample = recall_sample;
    e.cache.with_mtp = engine.with_mtp;
    engine.change(e);
    engine_ = std::make_unique<Engine>(model_.model, model_.context, e);
    scorer_ = std::make_unique<PromptScorer>(model_.model, model_.context, e);
    const std::string folder = model_.model.checkpoint().folder();
    served_ = std::make_unique<ServedModel>(
        ServedModel{model_.model, Tokenizer::load(folder + "/tokenizer.json"),
                    format ? *format : detect_chat_format(folder),
                    read_generation_defaults(model_.model.checkpoint(), model_.model.config()),
                    "mini", e.policy, engine_->max_context(), 0});
    app_ = std::make_unique<App>(std::move(options));
    http.port = 0;
    http_ = std::make_unique<HttpServer>(http, *app_);
    thread_ = std::make_unique<EngineThread>(*engine_, scorer_.get(), app_->metrics());
    app_->serve(*served_, *thread_);
    runner_ = std::thread([this] {
      http_->run(false, milliseconds(20'000 * kSlower), [this] { app_->begin_drain(); });
    });
  }
  ~Live() {
    http_->stop();
    join();
    app_->stop();
    thread_->stop();
  }
  void join() {
    if (runner_.joinable()) runner_.join();
  }
  uint16_t port() const { return http_->port(); }
  HttpServer& http() { return *http_; }
  EngineThread& engine() { return *thread_; }

  // Until nothing runs; false if that takes more than ten seconds.
  bool settles() {
    for (int i = 0; i < 1000 * kSlower; ++i) {
      const EngineGauges g = thread_->gauges();
      if (g.running == 0 && g.waiting == 0 && g.pages_used == 0) {
        return g.pages_free + g.pages_cached == g.pages_total;
      }
      std::this_thread::sleep_for(milliseconds(10));
    }
    return false;
  }

 private:
  Model model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<PromptScorer> scorer_;
  std::unique_ptr<ServedModel> served_;
  std::unique_ptr<App> app_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<EngineThread> thread_;
  std::thread runner_;
};

class Socket {
 public:
  // `receive_buffer`: bytes that the kernel takes in for a client that does not read; 0: its own
  // way.
  explicit Socket(const Live& live, int receive_buffer = 0)
      : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(live.port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Socket() { close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void send(const std::string& bytes) const {
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t n = ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (n <= 0) return;  // the server has hung up, which the answer shows
      at += static_cast<size_t>(n);
    }
  }
  // What comes until `end` is in it, the connection ends, or the time is over.
  std::string read_until(const std::string& end, int timeout_ms = 20'000 * kSlower) {
    const auto last = steady_clock::now() + milliseconds(timeout_ms);
    while (end.empty() || text_.find(end) == std::string::npos) {
      pollfd p{fd_, POLLIN, 0};
      const auto left = std::chrono::duration_cast<milliseconds>(last - steady_clock::now());
      if (left.count() <= 0 || ::poll(&p, 1, static_cast<int>(left.count())) <= 0) break;
      char buffer[4096];
      const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) break;
      text_.append(buffer, static_cast<size_t>(n));
    }
    return text_;
  }
  std::string read_all() { return read_until(""); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
  std::string text_;
};

inline std::string post(const std::string& path, const std::string& body,
                        const std::string& more = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         more + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
inline std::string get(const std::string& path, const std::string& more = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n";
}
inline int status_of(const std::string& answer) {
  return answer.size() < 12 ? 0 : std::stoi(answer.substr(9, 3));
}
inline const std::string kClose = "Connection: close\r\n";

inline std::string ask(const Live& live, const std::string& path, const std::string& body) {
  Socket s(live);
  s.send(post(path, body, kClose));
  return s.read_all();
}
inline std::string body_of(const std::string& answer) {
  const size_t end = answer.find("\r\n\r\n");
  return end == std::string::npos ? "" : answer.substr(end + 4);
}
// The body of an answer in chunks, as server-sent events come.
inline std::string unchunked(const std::string& answer) {
  const std::string chunks = body_of(answer);
  std::string out;
  for (size_t at = 0; at < chunks.size();) {
    const size_t size = std::stoul(chunks.substr(at), nullptr, 16);
    at = chunks.find("\r\n", at) + 2;
    out += chunks.substr(at, size);
    at += size + 2;
    if (size == 0) break;
  }
  return out;
}
// The data of each event.
inline std::vector<std::string> events_of(const std::string& answer) {
  std::vector<std::string> out;
  const std::string text = unchunked(answer);
  for (size_t at = text.find("data: "); at != std::string::npos; at = text.find("data: ", at)) {
    at += 6;
    out.push_back(text.substr(at, text.find("\n\n", at) - at));
  }
  return out;
}

}  // namespace tamis::server
