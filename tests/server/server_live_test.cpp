// A live server on a free port, and clients that do what clients should not.
#include <nlohmann/json.hpp>
#include <vector>

#include "base/json.h"
#include "server/live.h"

namespace tamis::server {
namespace {

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
  http.write_timeout = milliseconds(200);
  Live live({}, http);
  Socket head(live), body(live), silent(live), reader(live, 4096);
  std::string pages;  // more of them than the kernel takes for a client that reads none
  for (int i = 0; i < 400; ++i) pages += get("/web/app.js");
  reader.send(pages);
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
