#include "server/http_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tamis::server {
namespace {

struct Outcome {
  HttpParser::State state = HttpParser::State::kHead;
  int status = 0;
  std::string method, path, query, body, rest;
  size_t fields = 0;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

// Feeds the bytes in pieces of `piece`.
Outcome parse(const std::string& bytes, size_t piece, const HttpLimits& limits = {}) {
  HttpParser parser(limits);
  size_t at = 0;
  while (at < bytes.size()) {
    const std::string_view part = std::string_view(bytes).substr(at, piece);
    size_t used = parser.push(part);
    if (parser.state() == HttpParser::State::kHeadDone) {
      parser.resume();
      used += parser.push(part.substr(used));
    }
    at += used;
    if (parser.state() == HttpParser::State::kError || parser.state() == HttpParser::State::kDone) {
      break;
    }
  }
  Outcome o{parser.state(), parser.error_status(), "", "", "", "", "", 0};
  if (o.status == 0) {
    HttpRequest& r = parser.request();
    o = {parser.state(), 0, r.method, r.path, r.query, r.body, bytes.substr(at), r.headers.size()};
  }
  return o;
}

// The same in one piece, byte by byte, and in threes.
Outcome parse_all_ways(const std::string& bytes, const HttpLimits& limits = {}) {
  const Outcome whole = parse(bytes, bytes.size(), limits);
  EXPECT_EQ(whole, parse(bytes, 1, limits)) << bytes.substr(0, 200);
  EXPECT_EQ(whole, parse(bytes, 3, limits)) << bytes.substr(0, 200);
  return whole;
}

const std::string kHost = "Host: a\r\n";

TEST(HttpParser, ReadsARequest) {
  const Outcome o = parse_all_ways(
      "POST /v1/x?q=1 HTTP/1.1\r\nHost: localhost:80\r\nContent-Length: 5\r\n\r\nhelloGET");
  EXPECT_EQ(o.state, HttpParser::State::kDone);
  EXPECT_EQ(o.method, "POST");
  EXPECT_EQ(o.path, "/v1/x");
  EXPECT_EQ(o.query, "q=1");
  EXPECT_EQ(o.body, "hello");
  EXPECT_EQ(o.rest, "GET");
}

TEST(HttpParser, ReadsChunks) {
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(parse_all_ways(head + "5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nrest").body,
            "hello0123456789");
  // Space before an extension is bad, but is to be read.
  EXPECT_EQ(parse_all_ways(head + "5 \t; x = \"y\" ;z\r\nhello\r\n0;last\r\n\r\n").body, "hello");
  const Outcome trailer = parse_all_ways(head + "0\r\nX-Sum: 1\r\n\r\nrest");
  EXPECT_EQ(trailer.state, HttpParser::State::kDone);
  EXPECT_EQ(trailer.rest, "rest");
  EXPECT_EQ(trailer.fields, 2U);  // a trailer is no header
  std::string ones = head;
  for (int i = 0; i < 20'000; ++i) ones += "1\r\nA\r\n";
  EXPECT_EQ(parse(ones + "0\r\n\r\n", 4096).body, std::string(20'000, 'A'));
}

TEST(HttpParser, TakesTheTargetOfAProxy) {
  EXPECT_EQ(parse_all_ways("GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n").path, "/x");
  EXPECT_EQ(parse_all_ways("GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n").status, 400);
  EXPECT_EQ(parse_all_ways("GET HTTP://A:80/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n").path, "/x");
  EXPECT_EQ(parse_all_ways("GET http://[::1]:80 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").path, "/");
  EXPECT_EQ(parse_all_ways("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").path, "/");
  EXPECT_EQ(parse_all_ways("GET / HTTP/1.0\r\n\r\n").path, "/");
}

// The cases of the public HTTP/1.1 probes, by what they must get.
TEST(HttpParser, RefusesWhatTwoReadersCouldReadDifferently) {
  const std::string get = "GET / HTTP/1.1\r\n" + kHost;
  const std::string post = "POST / HTTP/1.1\r\n" + kHost;
  const std::vector<std::string> bad = {
      "GET / HTTP/1.1\n" + kHost + "\r\n",
      "GET / HTTP/1.1\r\nHost: a\n\r\n",
      "GET / HTTP/1.1\rHost: a\r\n\r\n",
      "\r\n\r\n\r\n" + get + "\r\n",
      get + "X: 1\r\n folded\r\n\r\n",
      " " + get + "\r\n",
      "GET  / HTTP/1.1\r\n" + kHost + "\r\n",
      "GET / HTTP/1.1 \r\n" + kHost + "\r\n",
      "GET / http/1.1\r\n" + kHost + "\r\n",
      "GET / HTTP/1.2\r\n" + kHost + "\r\n",
      "GET /\r\n" + kHost + "\r\n",
      "GET /a b HTTP/1.1\r\n" + kHost + "\r\n",
      "GET /#x HTTP/1.1\r\n" + kHost + "\r\n",
      "GET x HTTP/1.1\r\n" + kHost + "\r\n",
      "GET /\xc3\xa9 HTTP/1.1\r\n" + kHost + "\r\n",
      "G(T / HTTP/1.1\r\n" + kHost + "\r\n",
      "GET / HTTP/1.1\r\n\r\n",
      get + "Host: b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: []\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
      "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
      get + "X y: 1\r\n\r\n",
      get + ": 1\r\n\r\n",
      get + "novalue\r\n\r\n",
      get + std::string("X: a\0b\r\n\r\n", 10),
      get + "X: \x07\r\n\r\n",
      post + "Content-Length: +5\r\n\r\nhello",
      post + "Content-Length: 0x5\r\n\r\nhello",
      post + "Content-Length: 1_0\r\n\r\nhello",
      post + "Content-Length: -1\r\n\r\n",
      post + "Content-Length: 007\r\n\r\nhello77",
      post + "Content-Length: 5, 5\r\n\r\nhello",
      post + "Content-Length: 5, 6\r\n\r\nhello",
      post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
      post + "Content-Length:\r\n\r\n",
      post + "Content-Length: 99999999999999999999\r\n\r\n",
      post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      post + "Transfer-Encoding: xchunked\r\n\r\n",
      post + "Transfer-Encoding: chunked, identity\r\n\r\n",
      post + "Transfer-Encoding: gzip, chunked\r\n\r\n",
      post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
      post + "Transfer-Encoding : chunked\r\n\r\n",
      post +
          "Transfer-Encoding: \x0b"
          "chunked\r\n\r\n",
      "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
  };
  for (const std::string& bytes : bad) {
    const Outcome o = parse_all_ways(bytes);
    EXPECT_EQ(o.state, HttpParser::State::kError) << bytes;
    EXPECT_EQ(o.status, 400) << bytes;
  }
  EXPECT_EQ(parse_all_ways("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").status, 505);
  EXPECT_EQ(parse_all_ways(get + "Expect: 200-maybe\r\n\r\n").status, 417);
}

TEST(HttpParser, RefusesMalformedChunks) {
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::vector<std::string> bad = {
      "0x5\r\nhello\r\n0\r\n\r\n",
      "1_0\r\n",
      "FFFFFFFFFFFFFFFF0\r\n",
      "-1\r\n",
      "+5\r\nhello",
      "5\r\nhello!!\r\n",
      "5\nhello\r\n",
      "5;a\nb\r\nhello",
      "5;a\rb\r\nhello",
      " 5\r\nhello",
      "5 \r\nhello",
      "5 5\r\nhello",
      "5 5;x\r\nhello",
      "\r\n",
      ";x\r\n",
      "5\r\nhelloX",
      "0\r\nX: 1\n\r\n",
      "0\r\nContent-Length: 1\r\n\r\n",
      "0\r\nHost: b\r\n\r\n",
      "0\r\nTransfer-Encoding: chunked\r\n\r\n",
      "0\r\nAuthorization: x\r\n\r\n",
  };
  for (const std::string& bytes : bad) {
    EXPECT_EQ(parse_all_ways(head + bytes).status, 400) << bytes;
  }
}

TEST(HttpParser, HoldsItsLimits) {
  HttpLimits limits;
  limits.head_bytes = 1000;
  limits.url_bytes = 100;
  limits.fields = 5;
  limits.body_bytes = 10;
  const auto status = [&](const std::string& bytes) {
    return parse_all_ways(bytes, limits).status;
  };
  const auto url = [](size_t n) {
    return "GET /" + std::string(n - 1, 'a') + " HTTP/1.1\r\n" + kHost + "\r\n";
  };
  EXPECT_EQ(status(url(100)), 0);
  EXPECT_EQ(status(url(101)), 414);
  EXPECT_EQ(status("GET /" + std::string(5000, 'a')), 414);
  const auto fields = [](int n) {
    std::string text = "GET / HTTP/1.1\r\n" + kHost;
    for (int i = 1; i < n; ++i) text += "X: 1\r\n";
    return text + "\r\n";
  };
  EXPECT_EQ(status(fields(5)), 0);
  EXPECT_EQ(status(fields(6)), 431);
  EXPECT_EQ(status("GET / HTTP/1.1\r\n" + kHost + "X: " + std::string(1000, 'a')), 431);
  EXPECT_EQ(status(std::string(5000, 'G')), 400);
  const std::string post = "POST / HTTP/1.1\r\n" + kHost;
  EXPECT_EQ(status(post + "Content-Length: 10\r\n\r\n0123456789"), 0);
  EXPECT_EQ(status(post + "Content-Length: 11\r\n\r\n"), 413);
  const std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(status(chunked + "a\r\n0123456789\r\n0\r\n\r\n"), 0);
  EXPECT_EQ(status(chunked + "a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n"), 413);
  EXPECT_EQ(status(chunked + "5;" + std::string(20'000, 'x')), 400);
}

}  // namespace
}  // namespace tamis::server
