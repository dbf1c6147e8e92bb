// What RFC 9110 and 9112 say a server MUST do, and what lets two readers of the same bytes see
// different requests: the cases of the public HTTP/1.1 probes against a live server. After each the
// server answers as before.
#include <string>
#include <vector>

#include "server/live.h"

namespace tamis::server {
namespace {

// Any of `statuses`, or for 0 an end of the connection without an answer. `answers` is how many
// answers the bytes may get at most: a second one would be to a smuggled request.
struct Probe {
  const char* rule;
  std::string bytes;
  std::vector<int> statuses;
  int answers = 1;
};

const std::string kHost = "Host: localhost\r\n";
const std::string kGet = "GET /health HTTP/1.1\r\n";
const std::string kPost = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n";
const std::string kBody = R"({"prompt":"a","max_tokens":1})";
const std::string kSmuggled = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

std::string chunks(const std::string& encoded) {
  return kPost + kHost + "Transfer-Encoding: chunked\r\n\r\n" + encoded + kSmuggled;
}
std::string sized(const std::string& fields) {
  return kPost + kHost + fields + "\r\n" + kBody + kSmuggled;
}
std::string field(const std::string& line) {
  return kGet + kHost + line + "\r\n" + kClose + "\r\n";
}
std::string line(const std::string& request_line) {
  return request_line + "\r\n" + kHost + kClose + "\r\n";
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

void run(const Live& live, const std::vector<Probe>& probes) {
  for (const Probe& p : probes) {
    Socket s(live);
    s.send(p.bytes);
    const auto begin = steady_clock::now();
    const std::string answer = s.read_until("", 4000);
    const std::string what = std::string(p.rule) + ": " + p.bytes.substr(0, 300) + "\n" + answer;
    EXPECT_LT(steady_clock::now() - begin, milliseconds(3500)) << "left open\n" << what;
    EXPECT_TRUE(std::count(p.statuses.begin(), p.statuses.end(), status_of(answer)) > 0) << what;
    EXPECT_LE(count(answer, "\r\nDate: "), p.answers) << what;
    if (status_of(answer) >= 400) {
      EXPECT_NE(answer.find("\"error\""), std::string::npos) << what;
    }
  }
  Socket s(live);
  s.send(get("/health", kClose));
  EXPECT_EQ(status_of(s.read_all()), 200);
}

TEST(HttpProbe, RequestLinesAndTargets) {
  Live live;
  run(live, {
                {"9112 2.2 empty line first", "\r\n" + line("GET /health HTTP/1.1"), {200}},
                {"9112 2.2 bare LF", "GET /health HTTP/1.1\n" + kHost + "\n", {400}},
                {"9112 2.2 bare CR", "GET /health HTTP/1.1\r" + kHost + "\r\n", {400}},
                {"9112 2.2 space after the line", kGet + " " + kHost + "\r\n", {400}},
                {"9112 2.2 no HTTP", std::string("\x16\x03\x01\x02\x00\x01", 6), {400}},
                {"9112 2.3 lower case", line("GET /health http/1.1"), {400}},
                {"9112 2.3 no version", line("GET /health"), {400}},
                {"9112 2.3 HTTP/1.1.1", line("GET /health HTTP/1.1.1"), {400}},
                {"9112 2.3 HTTP/11", line("GET /health HTTP/11"), {400}},
                {"9112 2.3 HTTP/2.0", line("GET /health HTTP/2.0"), {505}},
                {"9112 2.3 HTTP/3.0", line("GET /health HTTP/3.0"), {505}},
                {"9113 3.4 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}},
                {"9112 3 two spaces", line("GET  /health HTTP/1.1"), {400}},
                {"9112 3 tab", line("GET\t/health HTTP/1.1"), {400}},
                {"9112 3 trailing space", line("GET /health HTTP/1.1 "), {400}},
                {"9112 3 space in target", line("GET /he alth HTTP/1.1"), {400}},
                {"9112 3 long target", line("GET /" + std::string(70'000, 'a')), {414}},
                {"9110 9.1 method case", line("get /health HTTP/1.1"), {405, 501}},
                {"9110 9.1 unknown method", line("BREW /health HTTP/1.1"), {405, 501}},
                {"9110 9.1 long method", line(std::string(70'000, 'A')), {400, 501}},
                {"9112 3.2.1 no slash", line("GET health HTTP/1.1"), {400}},
                {"9112 3.2.1 fragment", line("GET /health#x HTTP/1.1"), {400}},
                {"9112 3.2.1 raw bytes", line("GET /h\xc3\xa9 HTTP/1.1"), {400}},
                {"9112 3.2.1 backslash", line("GET \\health HTTP/1.1"), {400}},
                {"9112 3.2.2 absolute", line("GET http://localhost/health HTTP/1.1"), {200}},
                {"3986 3.1 scheme case", line("GET HTTP://localhost/health HTTP/1.1"), {200}},
                {"9112 3.2.2 other host", line("GET http://evil.example/health HTTP/1.1"), {400}},
                {"9110 4.2.4 user", line("GET http://u@localhost/health HTTP/1.1"), {400}},
                {"9112 3.2.3 CONNECT", line("CONNECT localhost:80 HTTP/1.1"), {400, 405, 501}},
                {"9112 3.2.4 asterisk", line("GET * HTTP/1.1"), {400}},
                {"9112 3.2.4 OPTIONS *", line("OPTIONS * HTTP/1.1"), {200, 204, 404, 405, 501}},
                {"query", line("GET /health?a=b&c=%20 HTTP/1.1"), {200}},
                {"dot segments", line("GET /../../etc/passwd HTTP/1.1"), {404}},
                {"encoded slash", line("GET /%2e%2e/health HTTP/1.1"), {404}},
            });
}

TEST(HttpProbe, HostsAndFields) {
  Live live;
  const std::string fold = kGet + kHost + "X: 1\r\n 2\r\n" + kClose + "\r\n";
  run(live,
      {
          {"9112 3.2 no Host", kGet + kClose + "\r\n", {400}},
          {"9112 3.2 two Hosts", field(kHost + "X: 1"), {400}},
          {"9112 3.2 two Hosts, other case", field("hOST: localhost"), {400}},
          {"9112 3.2 list", kGet + "Host: localhost, evil\r\n\r\n", {400}},
          {"9112 3.2 path", kGet + "Host: localhost/x\r\n\r\n", {400}},
          {"9112 3.2 user", kGet + "Host: u@localhost\r\n\r\n", {400}},
          {"9112 3.2 port", kGet + "Host: localhost:x\r\n\r\n", {400}},
          {"9110 7.4 another host", kGet + "Host: evil.example\r\n" + kClose + "\r\n", {421}},
          {"9110 7.2 case and port", kGet + "HOST: LocalHost:80\r\n" + kClose + "\r\n", {200}},
          {"9112 5.1 space before colon", kGet + "Host : localhost\r\n\r\n", {400}},
          {"9112 5.1 tab before colon", field("X\t: 1"), {400}},
          {"9112 5.1 no colon", field("novalue"), {400}},
          {"9112 5.1 no name", field(": 1"), {400}},
          {"9110 5.1 name", field("X(y): 1"), {400}},
          {"9110 5.6.2 raw name", field("\xc3\xa9: 1"), {400}},
          {"9112 5.2 folded", fold, {400}},
          {"9112 5.2 folded by tab", field("X: 1\r\n\t2"), {400}},
          {"9112 5.2 first folded", kGet + " X: 1\r\n" + kHost + "\r\n", {400}},
          {"9110 5.5 NUL", field(std::string("X: a\0b", 6)), {400}},
          {"9110 5.5 bell", field("X: \x07"), {400}},
          {"9110 5.5 delete", field("X: \x7f"), {400}},
          {"9110 5.5 bare CR", field("X: a\rb"), {400}},
          {"9110 5.5 bare LF", field("X: a\nY: b"), {400}},
          {"9110 5.5 obs-text", field("X: \xc3\xa9"), {200}},
          {"9110 5.5 empty", field("X:"), {200}},
          {"9110 5.5 spaces around", field("X: \t  a \t "), {200}},
          {"9110 5.5 value of 60 KB", field("X: " + std::string(60'000, 'a')), {200}},
          {"6585 5 large field", field("X: " + std::string(100'000, 'a')), {431}},
          {"6585 5 large name", field(std::string(100'000, 'X') + ": a"), {431}},
          {"9110 10.1.1 another expectation", field("Expect: 200-ok"), {417}},
          {"9110 7.8 upgrade", field("Connection: Upgrade\r\nUpgrade: h2c"), {200}},
          {"9112 9.3 HTTP/1.0", "GET /health HTTP/1.0\r\n\r\n", {200}},
          {"spoofed by a client", field("REMOTE_ADDR: 127.0.0.1\r\nX-Forwarded-For: ,,,"), {200}},
      });
}

TEST(HttpProbe, LengthsAndCodings) {
  Live live;
  const std::string n = std::to_string(kBody.size());
  std::vector<Probe> probes = {
      {"9112 6.1 both",
       sized("Content-Length: " + n + "\r\nTransfer-Encoding: chunked\r\n"),
       {400}},
      {"9112 6.1 both, other order",
       kPost + kHost + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" +
           kSmuggled,
       {400}},
      {"9112 6.1 HTTP/1.0",
       "POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + kSmuggled,
       {400}},
  };
  for (const char* length :
       {"+5", "-1", "0x5", "1_0", "5 5", "5,5", "5, 5", "5, 6", "5;x", "5.0", "1e1", "", "five",
        "99999999999999999999", "18446744073709551621", "\xef\xbc\x95", "007"}) {
    probes.push_back(
        {"9112 6.3 length", sized(std::string("Content-Length: ") + length + "\r\n"), {400}});
  }
  probes.push_back({"9112 6.3 two", sized("Content-Length: 5\r\nContent-Length: 6\r\n"), {400}});
  probes.push_back({"9112 6.3 twice", sized("Content-Length: 5\r\nContent-Length: 5\r\n"), {400}});
  probes.push_back({"9110 15.5.14 large", sized("Content-Length: 9999999999\r\n"), {413}});
  for (const char* coding :
       {"Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity", "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: \x0b"
        "chunked",
        "Transfer-Encoding:\r\n chunked", "Transfer-Encoding : chunked",
        "Transfer-Encoding: \"chunked\"", "Transfer-Encoding: chunked;x",
        "Transfer-Encoding:", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"}) {
    probes.push_back(
        {"9112 6.1 coding", kPost + kHost + coding + "\r\n\r\n0\r\n\r\n" + kSmuggled, {400, 501}});
  }
  probes.push_back(
      {"9112 6.1 coding and NUL",
       kPost + kHost + std::string("Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n", 35) + kSmuggled,
       {400}});
  for (const char* bad : {"0x5\r\nhello\r\n0\r\n\r\n",
                          "1_0\r\n",
                          "-1\r\n",
                          "+5\r\nhello\r\n",
                          "\r\n",
                          ";x\r\n",
                          "g\r\n",
                          " 5\r\nhello\r\n",
                          "5 \r\nhello\r\n",
                          "FFFFFFFFFFFFFFFF0\r\n",
                          "10000000000000005\r\nhello\r\n",
                          "5\r\nhello!!\r\n",
                          "5\r\nhel\r\n0\r\n\r\n",
                          "5\nhello\r\n0\r\n\r\n",
                          "5\r\nhello\n0\r\n\r\n",
                          "5\rhello\r\n0\r\n\r\n",
                          "5;a\nb\r\nhello\r\n",
                          "5;a\rb\r\nhello\r\n",
                          "0\n\n",
                          "0\r\nX: 1\n\r\n",
                          "0\r\nX 1\r\n\r\n",
                          "0\r\nContent-Length: 5\r\n\r\n",
                          "0\r\nHost: evil\r\n\r\n",
                          "0\r\nTransfer-Encoding: chunked\r\n\r\n",
                          "0\r\nAuthorization: x\r\n\r\n"}) {
    probes.push_back({"9112 7.1 chunk", chunks(bad), {400}});
  }
  // What is right, or merely odd, is read. The second request is one of its own then.
  const std::string after =
      "POST /tokenize HTTP/1.1\r\n" + kHost + "Transfer-Encoding: chunked\r\n";
  const std::string last = get("/health", kClose);
  const auto good = [&](const char* rule, const std::string& more, const std::string& encoded) {
    probes.push_back({rule, after + more + "\r\n" + encoded + last, {200}, 2});
  };
  good("9112 7.1 chunks", "", "5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n");
  good("9112 7.1 hex digits", "", "00000E\r\n{\"prompt\":\"a\"}\r\n000\r\n\r\n");
  good("9112 7.1.1 extensions", "", "e;a=b;c=\"d\"\r\n{\"prompt\":\"a\"}\r\n0;x\r\n\r\n");
  good("9112 7.1.1 bad space", "", "e \t; a = b\r\n{\"prompt\":\"a\"}\r\n0\r\n\r\n");
  good("9112 7.1.2 trailer", "Trailer: X\r\n", "e\r\n{\"prompt\":\"a\"}\r\n0\r\nX: 1\r\n\r\n");
  good("9110 10.1.1 Expect", "Expect: 100-continue\r\n", "e\r\n{\"prompt\":\"a\"}\r\n0\r\n\r\n");
  probes.push_back({"9112 6.1 coding case",
                    "POST /tokenize HTTP/1.1\r\n" + kHost + "transfer-ENCODING: CHUNKED\r\n\r\n" +
                        "e\r\n{\"prompt\":\"a\"}\r\n0\r\n\r\n" + last,
                    {200},
                    2});
  run(live, probes);
}

std::string header_of(const std::string& answer, const std::string& name) {
  const size_t at = answer.find("\r\n" + name + ": ");
  if (at == std::string::npos || at > answer.find("\r\n\r\n")) return "";
  const size_t begin = at + name.size() + 4;
  return answer.substr(begin, answer.find("\r\n", begin) - begin);
}

std::string answer_to(const Live& live, const std::string& bytes) {
  Socket s(live);
  s.send(bytes);
  return s.read_all();
}

TEST(HttpProbe, Answers) {
  AppOptions options;
  options.access.origins = {"https://good.example"};
  Live live(options);
  // 9110 6.6.1: a date, in the one form.
  for (const char* path : {"/health", "/none"}) {
    const std::string date = header_of(answer_to(live, get(path, kClose)), "Date");
    EXPECT_EQ(date.size(), 29U) << date;
    EXPECT_TRUE(date.ends_with(" GMT")) << date;
  }
  // 9110 15.5.6: what the path can be asked by.
  EXPECT_EQ(header_of(answer_to(live, get("/v1/completions", kClose)), "Allow"), "POST");
  EXPECT_EQ(header_of(answer_to(live, post("/health", "{}", kClose)), "Allow"), "GET, HEAD");
  // 9110 9.3.2: the head of the answer to GET, and nothing else.
  for (const char* path : {"/health", "/v1/models", "/none"}) {
    const std::string whole = answer_to(live, get(path, kClose));
    const std::string head =
        answer_to(live, "HEAD " + std::string(path) + " HTTP/1.1\r\n" + kHost + kClose + "\r\n");
    EXPECT_EQ(status_of(head), status_of(whole)) << path;
    EXPECT_EQ(body_of(head), "") << path;
    EXPECT_EQ(header_of(head, "Content-Length"), header_of(whole, "Content-Length")) << path;
    EXPECT_EQ(header_of(whole, "Content-Length"), std::to_string(body_of(whole).size())) << path;
  }
  // 9110 8.6: no length beside 204.
  const std::string preflight =
      answer_to(live, "OPTIONS /v1/completions HTTP/1.1\r\n" + kHost +
                          "Origin: https://good.example\r\n" + kClose + "\r\n");
  EXPECT_EQ(status_of(preflight), 204);
  EXPECT_EQ(header_of(preflight, "Content-Length"), "");
  EXPECT_EQ(header_of(preflight, "Transfer-Encoding"), "");
  // 9112 9.6: who says that it closes does.
  EXPECT_EQ(header_of(answer_to(live, get("/health", kClose)), "Connection"), "close");
  // 9112 7.1: HTTP/1.0 gets no chunks.
  const std::string body = R"({"prompt":"a","max_tokens":2,"stream":true})";
  const std::string old = answer_to(live, "POST /v1/completions HTTP/1.0\r\nContent-Length: " +
                                              std::to_string(body.size()) + "\r\n\r\n" + body);
  EXPECT_EQ(header_of(old, "Transfer-Encoding"), "");
  EXPECT_TRUE(body_of(old).starts_with("data: ")) << old;
  EXPECT_TRUE(old.ends_with("[DONE]\n\n")) << old;
}

// 9110 10.1.1: 100 comes before the body does, once, and never without one or to HTTP/1.0.
TEST(HttpProbe, ExpectContinue) {
  Live live;
  const std::string head = "POST /tokenize HTTP/1.1\r\n" + kHost + "Content-Length: 14\r\n" +
                           kClose + "Expect: 100-Continue\r\n\r\n";
  {
    Socket s(live);
    s.send(head);
    EXPECT_EQ(s.read_until("\r\n\r\n", 3000), "HTTP/1.1 100 Continue\r\n\r\n");
    s.send(R"({"prompt":"a"})");
    EXPECT_EQ(count(s.read_all(), "HTTP/1.1 200 "), 1);
  }
  const std::string none = get("/health", "Expect: 100-continue\r\n" + kClose);
  EXPECT_EQ(status_of(answer_to(live, none)), 200);
  const std::string old =
      "POST /tokenize HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n";
  EXPECT_EQ(status_of(answer_to(live, old + R"({"prompt":"a"})")), 200);
  // Refused by its head: no 100, and what follows is not read as a request.
  const std::string refused = answer_to(
      live, "POST /none HTTP/1.1\r\n" + kHost +
                "Expect: 100-continue\r\nContent-Length: 50\r\n\r\n" + kSmuggled + kSmuggled);
  EXPECT_EQ(status_of(refused), 404);
  EXPECT_EQ(count(refused, "HTTP/1.1 "), 1) << refused;
}

// A thousand requests of one connection, in order; after a wrong one there is none.
TEST(HttpProbe, ManyOnOneConnection) {
  Live live;
  std::string all;
  for (int i = 0; i < 1000; ++i) {
    all += i % 2 == 0 ? get("/health", "X-Request-Id: r" + std::to_string(i) + "\r\n")
                      : post("/tokenize", R"({"prompt":"a"})",
                             "X-Request-Id: r" + std::to_string(i) + "\r\n");
  }
  const std::string answers = answer_to(live, all + "garbage\r\n\r\n" + kSmuggled);
  EXPECT_EQ(count(answers, "HTTP/1.1 200 "), 1000);
  EXPECT_EQ(count(answers, "HTTP/1.1 400 "), 1);
  size_t at = 0;
  for (int i = 0; i < 1000; ++i) {
    at = answers.find("X-Request-Id: r" + std::to_string(i) + "\r\n", at);
    ASSERT_NE(at, std::string::npos) << i;
  }
}

}  // namespace
}  // namespace tamis::server
