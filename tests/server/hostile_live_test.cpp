// What has ended, frozen or opened servers of this kind, sent to a live one. docs/hardening.md has
// the list; the names in comments are its rows.
#include <sys/resource.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/json.h"
#include "server/live.h"
#include "support/fewer_cases.h"

namespace tamis::server {
namespace {

constexpr const char* kCanary = "canary-7f3a";

std::string complete(const std::string& members) {
  return R"({"prompt":"The package","max_tokens":8)" + (members.empty() ? "" : "," + members) + "}";
}
std::string chat(const std::string& members) {
  return R"({"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,)" + members + "}";
}
std::string text_of(const std::string& answer) {
  EXPECT_EQ(status_of(answer), 200) << answer;
  return parse_json(body_of(answer), "answer")["choices"][0]["text"].get<std::string>();
}
std::string of_schema(const std::string& schema) {
  return chat(R"("response_format":{"type":"json_schema","schema":)" + schema + "}");
}
std::string repeated(const std::string& text, int n, const std::string& between = "") {
  std::string all;
  for (int i = 0; i < n; ++i) all += (i > 0 ? between : "") + text;
  return all;
}

// AP-3, AP-5, AP-6, AP-10, AP-14 and what else asks for too much.
TEST(HostileLive, TooMuchIsRefusedByName) {
  Live live;
  const std::string before = text_of(ask(live, "/v1/completions", complete("")));
  const struct {
    const char *path, *param;
    std::string body;
  } cases[] = {
      {"/v1/completions", "",
       complete(R"("logit_bias":{)" +
                [] {
                  std::string all = "\"0\":1";
                  for (int i = 1; i < 1025; ++i) all += ",\"" + std::to_string(i) + "\":1";
                  return all;
                }() +
                "}")},
      {"/v1/chat/completions", "top_logprobs", chat(R"("logprobs":true,"top_logprobs":1000000)")},
      {"/v1/chat/completions", "top_logprobs", chat(R"("logprobs":true,"top_logprobs":21)")},
      {"/v1/chat/completions", "top_logprobs", chat(R"("top_logprobs":5)")},
      {"/v1/completions", "prompt_logprobs", complete(R"("prompt_logprobs":-1)")},
      {"/v1/completions", "min_tokens", complete(R"("min_tokens":1)")},
      {"/v1/completions", "", complete(R"("temperature":NaN)")},
      {"/v1/completions", "return_selection", complete(R"("return_selection":65)")},
      {"/v1/completions", "index_topk", complete(R"("index_topk":1000000)")},
      {"/v1/completions", "prompt", R"({"n":8,"prompt":[)" + repeated("\"a\"", 9, ",") + "]}"},
      {"/v1/completions", "prompt", R"({"prompt":")" + std::string(1 << 20, 'Z') + "\"}"},
      {"/v1/chat/completions", "messages",
       R"({"messages":[)" + repeated(R"({"role":"user","content":"a"})", 100'000, ",") + "]}"},
      {"/v1/messages", "messages",
       R"({"max_tokens":1,"messages":[)" +
           repeated(R"({"role":"user","content":"a"})", 20'000, ",") + "]}"},
      {"/v1/responses", "input",
       R"({"input":[)" + repeated(R"({"role":"user","content":"a"})", 20'000, ",") + "]}"},
  };
  for (const auto& c : cases) {
    const std::string answer = ask(live, c.path, c.body);
    ASSERT_EQ(status_of(answer), 400) << c.body.substr(0, 200) << answer;
    const Json error = parse_json(body_of(answer), "answer")["error"];
    if (error.contains("param")) {
      EXPECT_EQ(error["param"].is_null() ? "" : error["param"].get<std::string>(), c.param)
          << error.dump();
    }
  }
  EXPECT_EQ(text_of(ask(live, "/v1/completions", complete(""))), before);
  EXPECT_TRUE(live.settles());
}

// AP-11: where all but one token are cut away, the numbers are JSON's all the same.
TEST(HostileLive, LogprobsAreAlwaysStrictJson) {
  Live live;
  for (const char* members :
       {R"("echo":true,"logprobs":1,"temperature":1,"top_k":1)",
        R"("logprobs":20,"temperature":1,"top_p":0.000001)",
        R"("echo":true,"logprobs":0,"logit_bias":{"5":100,"6":-100},"temperature":0)",
        R"("logprobs":2,"guided_regex":"[ab]{4}")"}) {
    const std::string answer = ask(live, "/v1/completions", complete(members));
    ASSERT_EQ(status_of(answer), 200) << answer;
    const Json logprobs =
        parse_json(body_of(answer), "answer")["choices"][0]["logprobs"]["token_logprobs"];
    EXPECT_GT(logprobs.size(), 1U);
    for (const Json& v : logprobs) {
      EXPECT_TRUE(v.is_null() || (v.is_number() && std::isfinite(v.get<double>()))) << answer;
    }
  }
}

// GR-2 to GR-6 through the API, in a bounded time.
TEST(HostileLive, SchemasAreFollowedOrRefusedQuickly) {
  Live live;
  std::string chain = R"("r5000":{"type":"null"})";
  for (int i = 0; i < 5000; ++i) {
    chain += ",\"r" + std::to_string(i) + R"(":{"$ref":"#/$defs/r)" + std::to_string(i + 1) + "\"}";
  }
  const std::string mutual =
      R"({"$ref":"#/$defs/a","$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/b"}},"b":{"type":"array","items":{"$ref":"#/$defs/a"}}}})";
  const std::pair<int, std::string> cases[] = {
      {0, of_schema(R"({"$ref":"#/$defs/r0","$defs":{)" + chain + "}}")},
      {200, of_schema(R"({"type":"string","maxLength":1999})")},
      {200, of_schema(R"({"type":"string","maxLength":2000})")},
      {200, of_schema(R"({"type":"string","maxLength":2001})")},
      {200, complete(R"("guided_regex":"a{0,2000}")")},
      {200, of_schema(mutual)},
      {200,
       of_schema(R"({"type":"object","properties":{"c":{"type":"array","items":{"$ref":"#"}}}})")},
      {400, of_schema(R"({"type":"string","pattern":")" + std::string(100'000, '(') + "\"}")},
      {400, of_schema(R"({"type":"string","pattern":"(?<=x)*"})")},
      {400, of_schema(R"({"$ref":"file:///etc/passwd"})")},
      {400, of_schema(R"({"$ref":"#/$defs/none","$defs":{}})")},
      {400, of_schema(R"({"type":"sound"})")},
      {400, complete(R"("guided_json":123)")},
      {400,
       chat(
           R"("tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{"type":"object","properties":{"x":{"type":"string","pattern":"*"}}}}}])")},
  };
  for (const auto& [status, body] : cases) {
    const char* path =
        body.starts_with(R"({"prompt")") ? "/v1/completions" : "/v1/chat/completions";
    const auto begin = steady_clock::now();
    const std::string answer = ask(live, path, body);
    EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(5)) << body.substr(0, 200);
    EXPECT_TRUE(status_of(answer) == status ||
                (status == 0 && (status_of(answer) == 200 || status_of(answer) == 400)))
        << body.substr(0, 200) << answer;
  }
  EXPECT_TRUE(live.settles());
}

// HT-2, HT-3, HT-9: many fields, an endless body, fields that name the client.
TEST(HostileLive, EndlessMessagesAreCutOff) {
  HttpOptions http;
  http.limits.body_bytes = 10'000;
  Live live({}, http);
  std::string fields;
  for (int i = 0; i < 10'000; ++i) fields += "X-H-" + std::to_string(i) + ": value\r\n";
  Socket many(live), endless(live), ones(live);
  many.send(get("/health", fields));
  EXPECT_EQ(status_of(many.read_all()), 431);
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
  endless.send(head + repeated("100\r\n" + std::string(256, 'a') + "\r\n", 1000));
  EXPECT_EQ(status_of(endless.read_all()), 413);
  ones.send(head + repeated("1\r\nA\r\n", 500'000));
  EXPECT_EQ(status_of(ones.read_all()), 413);
  EXPECT_EQ(status_of(ask(live, "/v1/completions", complete(""))), 200);
}

bool eventually(const std::function<bool()>& holds) {
  for (int i = 0; i < 12'000 && !holds(); ++i) std::this_thread::sleep_for(milliseconds(10));
  return holds();
}

// MiB of the process's own memory.
double own_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stod(line.substr(8)) / 1024;
  }
  return 0;
}

// HT-10: a thousand connections that say nothing, stop within the head, stop within the body, or
// ask for page after page and read none.
TEST(HostileLive, AThousandSlowClientsHoldNobodyUp) {
  constexpr int64_t kClients = 1000;
  rlimit files{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;  // both ends are in this process
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
  HttpOptions http;
  // Nobody is let go meanwhile: the others must be served beside them, not after them.
  http.header_timeout = http.body_grace = http.write_timeout = std::chrono::hours(1);
  Live live({}, http);
  EXPECT_EQ(status_of(ask(live, "/v1/completions", complete(""))), 200);
  const double before = own_memory();
  const std::string half = post("/v1/completions", complete("")).substr(0, 140);
  const std::string pages = repeated(get("/web/app.js"), 200);  // more than the kernel takes
  std::vector<std::unique_ptr<Socket>> slow;
  for (int64_t i = 0; i < kClients; ++i) {
    slow.push_back(std::make_unique<Socket>(live, 4096));
    if (i % 4 == 1) slow.back()->send("GET /health HT");
    if (i % 4 == 2) slow.back()->send(half);
    if (i % 4 == 3) slow.back()->send(pages);
  }
  EXPECT_TRUE(eventually([&] { return live.http().connections() >= kClients; }));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(status_of(ask(live, "/v1/completions", complete(""))), 200);
  }
  EXPECT_GE(live.http().connections(), kClients);
  EXPECT_LT(own_memory() - before, 128);  // 128 KiB each
}

// Answers every request with a stream that has no end but its client's.
class Flood final : public HttpService {
 public:
  ~Flood() override {
    gone_ = true;
    if (writer_.joinable()) writer_.join();
  }
  std::optional<HttpResponse> refuse(const HttpRequest&) override { return std::nullopt; }
  std::vector<HttpHeader> common_headers(const HttpRequest&) override { return {}; }
  HttpResponse protocol_error(int, std::string_view) override { return {}; }
  void log(const AccessRecord& record) override { completed_ = record.completed; }
  void handle(HttpRequest, std::shared_ptr<Exchange> exchange) override {
    exchange->begin({}, "");
    exchange->on_close([this] { gone_ = true; });
    writer_ = std::thread([this, exchange] {
      for (int i = 0; i < 10'000 && !gone_; ++i) {
        exchange->write(std::string(10'000, 'x'));
        written_ += 10'000;
        std::this_thread::sleep_for(milliseconds(1));
      }
      exchange->end();
    });
  }
  bool gone() const { return gone_; }
  bool completed() const { return completed_; }
  int64_t written() const { return written_; }

 private:
  std::thread writer_;
  std::atomic<bool> gone_ = false, completed_ = true;
  std::atomic<int64_t> written_ = 0;
};

// HT-10: of a stream that is not read, no more is kept than max_unsent, and the request ends,
// though the write that stands still has all the time in the world.
TEST(HostileLive, AStreamThatNobodyReadsEnds) {
  HttpOptions http;
  http.port = 0;
  http.max_unsent = 1 << 20;
  http.write_timeout = std::chrono::hours(1);
  Flood flood;
  HttpServer server(http, flood);
  std::thread runner([&] { server.run(false, milliseconds(1000), [] {}); });
  const int reader = ::socket(AF_INET, SOCK_STREAM, 0);
  const int little = 4096;  // for the kernel to take in
  ::setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(reader, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const std::string request = get("/");
  ASSERT_EQ(::send(reader, request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  EXPECT_TRUE(eventually([&] { return flood.gone(); }));
  EXPECT_LT(flood.written(), 50'000'000);  // what the kernel takes, and max_unsent
  // It gets what was on its way, and no end that could be taken for the whole.
  std::string got;
  char buffer[65536];
  for (ssize_t n = 0; (n = ::recv(reader, buffer, sizeof buffer, 0)) > 0;) {
    got.append(buffer, static_cast<size_t>(n));
  }
  ::close(reader);
  EXPECT_EQ(status_of(got), 200);
  EXPECT_FALSE(got.ends_with("0\r\n\r\n"));
  EXPECT_TRUE(eventually([&] { return server.connections() == 0; }));
  server.stop();
  runner.join();
  EXPECT_FALSE(flood.completed());
}

// SE-1: with keys, everything but health is closed, also what does not exist; SE-5: no other site's
// page is let in.
TEST(HostileLive, WithoutAKeyNothingIsToldButHealth) {
  AppOptions options;
  options.access.keys = {"the-first-key", "the-second-key"};
  Live live(options);
  const auto status = [&](const std::string& bytes) {
    Socket s(live);
    s.send(bytes);
    const std::string answer = s.read_all();
    EXPECT_EQ(answer.find("Access-Control"), std::string::npos);
    return status_of(answer);
  };
  for (const char* path : {"/livez", "/health", "/readyz", "/v1/health"}) {
    EXPECT_EQ(status(get(path, "Origin: https://evil\r\n" + kClose)), 200) << path;
  }
  const std::string bad[] = {"",
                             "Authorization: Bearer \r\n",
                             "Authorization: Bearer the-first-kez\r\n",
                             "Authorization: Bearer the-first-key0\r\n",
                             "Authorization: the-first-key\r\n",
                             "x-api-key: the-first-ke\r\n",
                             "Authorization: Bearer " + std::string(30'000, 'k') + "\r\n"};
  for (const char* path : {"/v1/models",      "/v1/models/mini", "/v1/chat/completions",
                           "/v1/completions", "/v1/messages",    "/v1/messages/count_tokens",
                           "/v1/responses",   "/v1/embeddings",  "/tokenize",
                           "/detokenize",     "/apply-template", "/metrics",
                           "/version",        "/props",          "/server_info",
                           "/slots",          "/invocations",    "/pause",
                           "/update_weights", "/score",          "/none"}) {
    for (const std::string& key : bad) {
      EXPECT_EQ(status(get(path, key + kClose)), 401) << path << key;
      EXPECT_EQ(status(post(path, "{}", key + kClose)), 401) << path << key;
    }
  }
  for (const char* key :
       {"Authorization: Bearer the-second-key\r\n", "x-api-key: the-first-key\r\n"}) {
    EXPECT_EQ(status(get("/v1/models", key + kClose)), 200);
  }
}

// SE-9: what one key's holder or one salt has cached is nothing to another.
TEST(HostileLive, PrefixesAreSharedUnderOneKeyAndSaltOnly) {
  AppOptions options;
  options.access.keys = {"the-first-key", "the-second-key"};
  Live live(options);
  const auto cached = [&](const char* key, const std::string& members) {
    const std::string body = R"({"max_tokens":1,"prompt":")" + repeated("word ", 200) + "\"" +
                             (members.empty() ? "" : "," + members) + "}";
    Socket s(live);
    s.send(post("/v1/completions", body, "x-api-key: " + std::string(key) + "\r\n" + kClose));
    const std::string answer = s.read_all();
    EXPECT_EQ(status_of(answer), 200) << answer;
    return parse_json(body_of(answer), "answer")["usage"]["prompt_tokens_details"]["cached_tokens"]
        .get<int64_t>();
  };
  EXPECT_EQ(cached("the-first-key", ""), 0);
  EXPECT_GT(cached("the-first-key", ""), 100);
  EXPECT_EQ(cached("the-second-key", ""), 0);
  EXPECT_EQ(cached("the-first-key", R"("cache_salt":"a")"), 0);
  EXPECT_EQ(cached("the-first-key", R"("cache_salt":"b")"), 0);
  EXPECT_GT(cached("the-first-key", R"("cache_salt":"a")"), 100);
  // A salt cannot be written so that it is another key's.
  EXPECT_EQ(cached("the-second-key", R"("cache_salt":"0:a")"), 0);
}

// SE-7, SE-8, SE-14: no text of a request in logs, metrics or elsewhere; a line stays a line.
TEST(HostileLive, LogsAndMetricsHoldNoTextOfRequests) {
  const std::string canary = kCanary;
  std::string pages, errors;
  int requests = 0;
  ::testing::internal::CaptureStderr();
  {
    Live live({}, {}, std::nullopt, 0, {}, /*access_log=*/true);
    const auto send = [&](const std::string& bytes) {
      Socket s(live);
      s.send(bytes);
      ++requests;
      return s.read_all();
    };
    const std::string forged =
        R"("user":"x\r\n{\"level\":\"error\"}\u001b[2J\u0000\u2028 )" + canary + "\"";
    EXPECT_EQ(
        status_of(send(post(
            "/v1/completions", R"({"prompt":")" + canary + R"(","max_tokens":4,)" + forged + "}",
            "X-Request-Id: a\"b" + canary + "\r\nUser-Agent: " + canary + "\r\n" + kClose))),
        200);
    for (const std::string& body :
         {std::string(R"({"prompt":5})"), std::string(R"({"prompt":"a","seed":1e99})"),
          std::string("{\"prompt\":\"\xff\"}"), std::string(R"({"prompt":"a","guided_regex":"("})"),
          std::string(R"({"prompt":"a","stop_token_ids":[99999]})")}) {
      errors += send(post("/v1/completions", body, kClose));
    }
    errors += send(get("/none?x=%0d%0a" + canary, kClose));
    errors += send(get("/a%1b[2J%00\xe2\x80\xa8", kClose));
    errors += send("GET /\x1b[2J HTTP/1.1\r\n\r\n");
    for (const char* path : {"/metrics", "/props", "/version", "/v1/models"}) {
      pages += send(get(path, kClose));
    }
    EXPECT_TRUE(live.settles());
  }
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(log.find(canary), std::string::npos) << log;
  EXPECT_EQ(pages.find(canary), std::string::npos) << pages;
  EXPECT_EQ(log.find('\x1b'), std::string::npos);
  std::istringstream lines(log);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    EXPECT_TRUE(parse_json(line, "log").is_object()) << line;
  }
  EXPECT_EQ(count, requests);
  for (const char* leak : {"0x",
                           "/"
                           "home/",
                           "/"
                           "tmp/",
                           ".cpp", "tamis::", "std::", TAMIS_SOURCE_DIR}) {
    EXPECT_EQ(errors.find(leak), std::string::npos) << leak << "\n" << errors;
  }
}

// KV-3, KV-4: the client goes at every stage, with and without a stream.
TEST(HostileLive, AClientMayGoAtAnyMoment) {
  const LiveEngine one{.change = [](EngineOptions& o) { o.max_sequences = 1; }};
  Live live({}, {}, std::nullopt, 0, one);
  const std::string want = text_of(ask(live, "/v1/completions", complete("")));
  for (const char* stream : {"false", "true"}) {
    const std::string end = std::string(",\"ignore_eos\":true,\"stream\":") + stream + "}";
    const std::string answers = R"({"prompt":"Once","max_tokens":3000)" + end;
    const std::string reads =
        R"({"max_tokens":3000,"prompt":")" + repeated("a word ", 900) + "\"" + end;
    const struct {
      const char* when;
      std::string bytes;
      int wait_ms;
    } moments[] = {
        {"in the head", post("/v1/completions", answers).substr(0, 60), 20},
        {"in the body", post("/v1/completions", answers).substr(0, 160), 20},
        {"at once", post("/v1/completions", answers), 0},
        {"while the prompt is read", post("/v1/completions", reads), 60},
        {"while it is answered", post("/v1/completions", answers), 150},
    };
    for (const auto& m : moments) {
      {
        // The second of them waits for its turn.
        Socket first(live), second(live);
        first.send(m.bytes);
        second.send(m.bytes);
        std::this_thread::sleep_for(milliseconds(m.wait_ms));
      }
      EXPECT_TRUE(live.settles()) << m.when << stream;
    }
  }
  EXPECT_EQ(text_of(ask(live, "/v1/completions", complete(""))), want);
}

// KV-5: far more live sequences than the pages can hold.
TEST(HostileLive, FewPagesForMany) {
  const LiveEngine few{.change = [](EngineOptions& o) { o.cache.pages = fewer(24, 10); }};
  Live live({}, {}, std::nullopt, 0, few);
  const auto body = [](int i) {
    return R"({"max_tokens":)" + std::to_string(fewer(100, 75)) +
           R"(,"ignore_eos":true,"prompt":"Chapter )" + std::to_string(i) + "\"}";
  };
  std::vector<std::string> alone;
  for (int i = 0; i < 4; ++i) alone.push_back(text_of(ask(live, "/v1/completions", body(i))));
  std::vector<std::unique_ptr<Socket>> sockets;
  for (int i = 0; i < fewer(32, 12); ++i) {
    sockets.push_back(std::make_unique<Socket>(live));
    sockets.back()->send(post("/v1/completions", body(i % 4), kClose));
  }
  for (size_t i = 0; i < sockets.size(); ++i) {
    EXPECT_EQ(text_of(sockets[i]->read_until("", 60'000 * kSlower)), alone[i % 4]) << i;
  }
  EXPECT_TRUE(live.settles());
  EXPECT_GT(live.engine().gauges().preemptions, 0);
}

// KV-7: a pass that throws ends its own requests with an error, and nothing else.
TEST(HostileLive, AFailingPassEndsItsRequestsOnly) {
  std::atomic<int> passes{-1};
  const LiveEngine failing{.change = [&](EngineOptions& o) {
    o.before_pass = [&](const std::vector<int64_t>&) {
      if (passes >= 0 && --passes < 0) passes = 0;
      if (passes == 0) throw std::runtime_error("the machine is on fire at 0x7ffe");
    };
  }};
  Live live({}, {}, std::nullopt, 0, failing);
  const std::string want = text_of(ask(live, "/v1/completions", complete("")));
  for (const int at : {1, 2, 5}) {
    passes = at;
    const std::string answer = ask(live, "/v1/completions", complete(""));
    EXPECT_GE(status_of(answer), 500) << answer;
    EXPECT_EQ(answer.find("0x"), std::string::npos) << answer;
    passes = at;
    const auto events = events_of(ask(live, "/v1/completions", complete(R"("stream":true)")));
    ASSERT_FALSE(events.empty());
    EXPECT_NE(events.back().find("\"error\""), std::string::npos) << events.back();
    passes = -1;
    EXPECT_TRUE(live.settles());
    EXPECT_EQ(text_of(ask(live, "/v1/completions", complete(""))), want);
  }
}

// KV-8: health tells of a pass that does not end, and not of a long prompt.
TEST(HostileLive, HealthSeesAStandstillAndNoLongPrompt) {
  std::atomic<bool> stand{false};
  std::atomic<int> pause_ms{0};
  const LiveEngine slow{.change = [&](EngineOptions& o) {
    o.before_pass = [&](const std::vector<int64_t>&) {
      std::this_thread::sleep_for(milliseconds(pause_ms));
      while (stand) std::this_thread::sleep_for(milliseconds(5));
    };
  }};
  AppOptions options;
  options.stall_limit = milliseconds(1000 * kSlower);
  Live live(options, {}, std::nullopt, 0, slow);
  const auto health = [&](const char* path) {
    Socket s(live);
    s.send(get(path, kClose));
    return status_of(s.read_all());
  };
  pause_ms = 150;
  Socket reading(live);
  reading.send(post("/v1/completions",
                    R"({"max_tokens":1,"prompt":")" + repeated("a word ", 700) + "\"}", kClose));
  const auto begin = steady_clock::now();
  int asked = 0;
  while (steady_clock::now() - begin < milliseconds(1300)) {
    EXPECT_EQ(health("/health"), 200);
    ++asked;
    std::this_thread::sleep_for(milliseconds(40));
  }
  EXPECT_GT(asked, 5);
  pause_ms = 0;
  EXPECT_EQ(status_of(reading.read_all()), 200);
  stand = true;
  Socket waiting(live);
  waiting.send(post("/v1/completions", complete(""), kClose));
  int status = 200;
  for (int i = 0; i < 100 * kSlower && status == 200; ++i) {
    std::this_thread::sleep_for(milliseconds(50));
    status = health("/health");
  }
  EXPECT_EQ(status, 503);
  EXPECT_EQ(health("/livez"), 200);
  stand = false;
  EXPECT_EQ(status_of(waiting.read_all()), 200);
  EXPECT_EQ(health("/health"), 200);
}

// KV-9: nothing to finish, nothing to wait for.
TEST(HostileLive, AnIdleServerStopsAtOnce) {
  Live live;
  Socket kept(live);
  kept.send(get("/health"));
  kept.read_until("ok");
  const auto begin = steady_clock::now();
  live.http().drain();
  live.join();
  EXPECT_LT(steady_clock::now() - begin, milliseconds(1000));
}

}  // namespace
}  // namespace tamis::server
