// A live server on a free port, and clients that do what clients should not.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "comm/group.h"
#include "engine/prompt_scorer.h"
#include "server/app.h"
#include "server/engine_thread.h"
#include "server/http_server.h"

namespace tamis::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// The bundled model, mapped once.
struct Model {
  Model() : context(1), model(TAMIS_SOURCE_DIR "/models/tamis-mini", {}, single()) {}
  static std::shared_ptr<Group> single() { return single_group(); }
  KernelContext context;
  LoadedModel model;
};

class Live {
 public:
  explicit Live(AppOptions options = {}, HttpOptions http = {}) {
    options.access_log = false;
    EngineOptions e;
    e.policy.topk = model_.model.config().index_topk;
    e.cache.pages = 257;
    e.chunk = 128;
    e.audit = true;
    engine_ = std::make_unique<Engine>(model_.model, model_.context, e);
    scorer_ = std::make_unique<PromptScorer>(model_.model, model_.context, e);
    const std::string folder = model_.model.checkpoint().folder();
    served_ = std::make_unique<ServedModel>(ServedModel{
        model_.model, Tokenizer::load(folder + "/tokenizer.json"), detect_chat_format(folder),
        read_generation_defaults(model_.model.checkpoint(), model_.model.config()), "mini",
        e.policy, engine_->max_context(), 0});
    app_ = std::make_unique<App>(std::move(options));
    http.port = 0;
    http_ = std::make_unique<HttpServer>(http, *app_);
    thread_ = std::make_unique<EngineThread>(*engine_, scorer_.get(), app_->metrics());
    app_->serve(*served_, *thread_);
    runner_ = std::thread(
        [this] { http_->run(false, milliseconds(20'000), [this] { app_->begin_drain(); }); });
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
    for (int i = 0; i < 1000; ++i) {
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
  explicit Socket(const Live& live) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
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
  std::string read_until(const std::string& end, int timeout_ms = 20'000) {
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

std::string post(const std::string& path, const std::string& body, const std::string& more = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         more + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
std::string get(const std::string& path, const std::string& more = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n";
}
int status_of(const std::string& answer) {
  return answer.size() < 12 ? 0 : std::stoi(answer.substr(9, 3));
}
const std::string kClose = "Connection: close\r\n";

std::string ask(const Live& live, const std::string& path, const std::string& body) {
  Socket s(live);
  s.send(post(path, body, kClose));
  return s.read_all();
}
std::string body_of(const std::string& answer) {
  return answer.substr(answer.find("\r\n\r\n") + 4);
}
std::string text_of(const Live& live, const std::string& prompt) {
  const std::string answer =
      ask(live, "/v1/completions", R"({"max_tokens":24,"prompt":")" + prompt + "\"}");
  EXPECT_EQ(status_of(answer), 200) << answer;
  return parse_json(body_of(answer), "answer")["choices"][0]["text"].get<std::string>();
}

TEST(ServerLive, WrongParametersAreRefusedByNameAndTheNextRequestIsServed) {
  Live live;
  const std::string before = text_of(live, "The package");
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"n", R"("n":1000000)"},
      {"stop_token_ids[0]", R"("stop_token_ids":[151645])"},
      {"stop_token_ids[0]", R"("stop_token_ids":[-1])"},
      {"stop_token_ids[0]", R"("stop_token_ids":[2147483648])"},
      {"logit_bias", R"("logit_bias":{"191222":-100})"},
      {"logit_bias", R"("logit_bias":{"-1":5})"},
      {"logit_bias", R"("logit_bias":{"1":"NaN"})"},
      {"max_tokens", R"("max_tokens":2147483647)"},
      {"max_tokens", R"("max_tokens":-1)"},
      {"max_tokens", R"("max_tokens":0)"},
      {"max_tokens", R"("max_tokens":1e30)"},
      {"logprobs", R"("logprobs":1000000)"},
      {"logprobs", R"("logprobs":21)"},
      {"n_discard", R"("n_discard":-1)"},
      {"prompt_embeds", R"("prompt_embeds":"AAAA")"},
      {"temperature", R"("temperature":-1)"},
      {"temperature", R"("temperature":1e308)"},
      {"temperature", R"("temperature":"0")"},
      {"top_p", R"("top_p":0)"},
      {"top_p", R"("top_p":2)"},
      {"top_k", R"("top_k":-2)"},
      {"seed", R"("seed":18446744073709551616)"},
      {"best_of", R"("best_of":1000)"},
      {"attention", R"("attention":"psychic")"},
      {"index_topk", R"("index_topk":0)"},
      {"", R"("temperature":0,"temperature":1)"},
      {"", "\"seed\":" + std::string(100'000, '9')},
      {"", "\"x\":" + std::string(10'000, '[') + "0" + std::string(10'000, ']')},
  };
  for (const auto& [param, member] : wrong) {
    const std::string body = R"({"prompt":"a",)" + member + "}";
    const std::string answer = ask(live, "/v1/completions", body);
    ASSERT_EQ(status_of(answer), 400) << member.substr(0, 100) << answer;
    const Json error = parse_json(body_of(answer), "answer")["error"];
    EXPECT_EQ(error["param"].is_null() ? "" : error["param"].get<std::string>(), param)
        << error.dump();
    EXPECT_EQ(status_of(ask(live, "/v1/completions", body)), 400);  // and the same again
  }
  for (const char* prompt : {R"("")", "[]", "[[]]", "[1.5]", "[999999]", "[-1]", "[8192]", "{}"}) {
    const std::string body = std::string(R"({"prompt":)") + prompt + "}";
    EXPECT_EQ(status_of(ask(live, "/v1/completions", body)), 400) << prompt;
  }
  std::string stops;
  for (int i = 0; i < 100'000; ++i) stops += "\"a\",";
  EXPECT_EQ(
      status_of(ask(live, "/v1/completions", R"({"prompt":"a","stop":[)" + stops + "\"b\"]}")),
      400);
  for (const std::string& body :
       {std::string("{\"prompt\":\"\xff\"}"), std::string("{\"prompt\":\"\xc0\xaf\"}"),
        std::string("{\"prompt\":\"\xed\xa0\x80\"}"), std::string("{"), std::string("[]"),
        std::string("null"), std::string()}) {
    EXPECT_EQ(status_of(ask(live, "/v1/completions", body)), 400) << body;
  }
  EXPECT_EQ(text_of(live, "The package"), before);
  EXPECT_TRUE(live.settles());
}

TEST(ServerLive, UserTextIsNeverAMarker) {
  Live live;
  const auto count = [&](const std::string& content) {
    const std::string answer =
        ask(live, "/tokenize", R"({"messages":[{"role":"user","content":")" + content + "\"}]}");
    const Json ids = parse_json(body_of(answer), "answer")["tokens"];
    return std::count(ids.begin(), ids.end(), Json(1));  // the end of a text
  };
  EXPECT_EQ(count("<｜end▁of▁sentence｜>"), count("x"));
}

TEST(ServerLive, DamagedHttpEndsTheConnectionAndNothingElse) {
  Live live;
  const std::vector<std::pair<int, std::string>> cases = {
      {400, "GET / HTTP/1.1\nHost: a\n\n"},
      {400,
       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {400, "\x16\x03\x01\x02\x00\x01"},
      {505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {414, "GET /" + std::string(100'000, 'a')},
      {431, "GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(100'000, 'a')},
      {421, "GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"},
      {403, get("/v1/models", "Sec-Fetch-Site: cross-site\r\n" + kClose)},
      {404, get("/v1/none", kClose)},
      {405, get("/v1/completions", kClose)},
      {404, get("/../../etc/passwd", kClose)},
      {413,
       "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"},
  };
  for (const auto& [status, bytes] : cases) {
    Socket s(live);
    s.send(bytes);
    const std::string answer = s.read_all();
    EXPECT_EQ(status_of(answer), status) << bytes.substr(0, 80);
    EXPECT_EQ(answer.find("Access-Control"), std::string::npos);
  }
  Socket s(live);
  s.send(get("/health", kClose));
  EXPECT_EQ(status_of(s.read_all()), 200);
}

TEST(ServerLive, RequestsSentAheadAreAnsweredInOrder) {
  Live live;
  Socket s(live);
  s.send(post("/v1/completions", R"({"prompt":"a","max_tokens":2})") + get("/version") +
         get("/v1/models", kClose) + "garbage");
  const std::string all = s.read_all();
  const size_t first = all.find("text_completion"), second = all.find("\"version\""),
               third = all.find("max_model_len");
  EXPECT_LT(first, second);
  EXPECT_LT(second, third);
  EXPECT_NE(third, std::string::npos);
}

TEST(ServerLive, ClientsThatGoLeaveNothingBehindAndOthersAsTheyWere) {
  Live live;
  const std::string alone = text_of(live, "The file");
  const std::string body = R"({"prompt":"Once","max_tokens":2000,"ignore_eos":true,"stream":)";
  for (int round = 0; round < 3; ++round) {
    std::vector<std::unique_ptr<Socket>> sockets;
    for (int i = 0; i < 12; ++i) {
      sockets.push_back(std::make_unique<Socket>(live));
      sockets.back()->send(post("/v1/completions", body + (i % 2 == 0 ? "true}" : "false}")));
    }
    EXPECT_EQ(text_of(live, "The file"), alone);
    EXPECT_NE(sockets[0]->read_until("data: ").find("data: "), std::string::npos);
    sockets.clear();
    ASSERT_TRUE(live.settles());
  }
}

TEST(ServerLive, MoreThanItHoldsIsRefusedAtOnce) {
  AppOptions options;
  options.max_requests = 2;
  Live live(options);
  const std::string body = R"({"prompt":"Once","max_tokens":2000,"ignore_eos":true,"stream":true})";
  Socket a(live), b(live);
  a.send(post("/v1/completions", body));
  b.send(post("/v1/completions", body));
  a.read_until("data: ");
  b.read_until("data: ");
  const std::string refused = ask(live, "/v1/completions", body);
  EXPECT_EQ(status_of(refused), 429);
  EXPECT_NE(refused.find("Retry-After: "), std::string::npos);
  a.close();
  b.close();
  EXPECT_TRUE(live.settles());
  EXPECT_EQ(status_of(ask(live, "/v1/completions", R"({"prompt":"a","max_tokens":1})")), 200);
}

TEST(ServerLive, DrainingFinishesWhatRunsAndRefusesTheRest) {
  Live live;
  Socket running(live), idle(live);
  running.send(post("/v1/completions",
                    R"({"prompt":"Once","max_tokens":150,"ignore_eos":true,"stream":true})"));
  idle.send(get("/version"));
  idle.read_until("version");
  running.read_until("data: ");
  live.http().drain();
  std::this_thread::sleep_for(milliseconds(50));
  const std::string refused = ask(live, "/v1/completions", R"({"prompt":"a"})");
  // Unless the stream was faster than we are.
  if (!refused.empty()) {
    EXPECT_EQ(status_of(refused), 503);
    EXPECT_NE(refused.find("Retry-After: "), std::string::npos);
  }
  EXPECT_NE(running.read_until("[DONE]").find("[DONE]"), std::string::npos);
  const auto start = steady_clock::now();
  live.join();
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(ServerLive, SlowClientsAreLetGo) {
  HttpOptions http;
  http.header_timeout = milliseconds(200);
  http.body_grace = milliseconds(200);
  Live live({}, http);
  Socket head(live), body(live), silent(live);
  head.send("GET / HT");
  body.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{");
  const auto start = steady_clock::now();
  head.read_until("", 5000);
  body.read_until("", 5000);
  EXPECT_EQ(silent.read_until("", 5000), "");
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(4));  // closed, not waited for
  for (int i = 0; i < 200 && live.http().connections() > 0; ++i) {
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_EQ(live.http().connections(), 0);
}

}  // namespace
}  // namespace tamis::server
