#include "server/load_generator.h"

#include <gtest/gtest.h>

#include <numeric>

namespace tamis::server {
namespace {

std::string chunk(const std::string& text) {
  char size[16];
  std::snprintf(size, sizeof size, "%zx\r\n", text.size());
  return size + text + "\r\n";
}

TEST(LoadGenerator, QuantilesAreValuesOfTheList) {
  std::vector<double> v(100);
  std::iota(v.rbegin(), v.rend(), 1);
  const Quantiles q = quantiles(v);
  EXPECT_EQ(q.p50, 50);
  EXPECT_EQ(q.p95, 95);
  EXPECT_EQ(q.p99, 99);
  EXPECT_EQ(q.max, 100);
  EXPECT_DOUBLE_EQ(q.mean, 50.5);
  EXPECT_EQ(quantiles({7}).p99, 7);
  EXPECT_EQ(quantiles({}).p50, 0);
}

// The same for every way of cutting the bytes.
TEST(LoadGenerator, AStreamIsReadInPiecesOfAnySize) {
  const std::string head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string text = R"(data: {"choices":[{"text":"a"}]})", end = "\n\n";
  const std::string usage =
      R"(data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}})";
  const std::string all = head + chunk(": ping\n\n") + chunk(text + end) +
                          chunk(text.substr(0, 9)) + chunk(text.substr(9) + end) +
                          chunk(R"(data: {"choices":[{"text":""}]})" + end + usage + end) +
                          chunk("data: [DONE]\n\n") + "0\r\n\r\n";
  for (size_t step = 1; step < all.size(); step += step < 20 ? 1 : 50) {
    StreamReader r;
    int64_t texts = 0;
    for (size_t at = 0; at < all.size(); at += step) texts += r.push(all.substr(at, step));
    EXPECT_EQ(texts, 2) << step;
    EXPECT_TRUE(r.complete());
    EXPECT_EQ(r.status(), 200);
    EXPECT_EQ(r.prompt_tokens(), 5);
    EXPECT_EQ(r.cached_tokens(), 4);
    EXPECT_EQ(r.completion_tokens(), 2);
  }
}

TEST(LoadGenerator, ARefusalIsNoStream) {
  StreamReader r;
  EXPECT_EQ(r.push("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"), 0);
  EXPECT_EQ(r.status(), 429);
  EXPECT_FALSE(r.complete());
}

}  // namespace
}  // namespace tamis::server
