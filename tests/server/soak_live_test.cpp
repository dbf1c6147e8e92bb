// Many streams at once, of which nearly a third go away at random moments: nothing is left behind,
// and the others get what they get alone. TAMIS_SOAK sets the number of streams (1000 by hand).
#include <fcntl.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "base/json.h"
#include "server/live.h"
#include "server/load_generator.h"

namespace tamis::server {
namespace {

size_t streams_wanted(size_t otherwise) {
  const char* wanted = std::getenv("TAMIS_SOAK");
  return wanted == nullptr ? otherwise : std::stoul(wanted);
}

// A few different requests, each asked for many times.
std::string body_of_kind(size_t kind, bool stream) {
  static constexpr const char* kPrompts[] = {
      "The package", "Once there was", "A file system", "The network of", "apt", "To install"};
  Json body{{"prompt", kPrompts[kind % std::size(kPrompts)]},
            {"max_tokens", 4 + kind % 5 * 4},
            {"ignore_eos", true},
            {"stream", stream}};
  if (kind % 3 == 1) body.update({{"temperature", 0.9}, {"seed", kind}});
  if (kind % 4 == 2) body["guided_regex"] = "[a-z ]{40,80}";
  return body.dump();
}
constexpr size_t kKinds = 24;

std::string text_of_events(const std::string& answer) {
  std::string text;
  for (const std::string& data : events_of(answer)) {
    if (data == "[DONE]") return text;
    const Json event = parse_json(data, "event");
    if (event.contains("error")) return "error: " + event["error"].dump();
    text += event["choices"][0]["text"].get<std::string>();
  }
  return text + " (without an end)";
}

// One of many clients on one thread.
struct Client {
  size_t kind = 0;
  int fd = -1;
  std::string answer;
  size_t leaves_after = SIZE_MAX;  // bytes of the answer
};

void run_clients(const Live& live, std::vector<Client>& clients) {
  for (Client& c : clients) {
    c.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_GE(c.fd, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(live.port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(c.fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const std::string request = post("/v1/completions", body_of_kind(c.kind, true), kClose);
    ASSERT_EQ(::send(c.fd, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    ::fcntl(c.fd, F_SETFL, O_NONBLOCK);
  }
  const auto last = steady_clock::now() + std::chrono::minutes(8);
  size_t open = clients.size();
  while (open > 0 && steady_clock::now() < last) {
    std::vector<pollfd> polls;
    for (const Client& c : clients) polls.push_back({c.fd, POLLIN, 0});  // -1 is passed over
    ::poll(polls.data(), polls.size(), 1000);
    for (Client& c : clients) {
      if (c.fd < 0) continue;
      char buffer[8192];
      const ssize_t n = ::recv(c.fd, buffer, sizeof buffer, 0);
      if (n < 0 && errno == EAGAIN && c.leaves_after > c.answer.size()) continue;
      if (n > 0) c.answer.append(buffer, static_cast<size_t>(n));
      if (n > 0 && c.leaves_after > c.answer.size()) continue;
      ::close(c.fd);
      c.fd = -1;
      --open;
    }
  }
  EXPECT_EQ(open, 0U);
}

std::map<size_t, std::string> texts_alone(const Live& live) {
  std::map<size_t, std::string> texts;
  for (size_t kind = 0; kind < kKinds; ++kind) {
    const std::string answer = ask(live, "/v1/completions", body_of_kind(kind, false));
    EXPECT_EQ(status_of(answer), 200) << answer;
    texts[kind] = parse_json(body_of(answer), "answer")["choices"][0]["text"].get<std::string>();
  }
  return texts;
}

TEST(SoakLive, StreamsAmongManyAreTheSameAndNothingIsLeftBehind) {
  const size_t count = streams_wanted(120);
  AppOptions options;
  options.max_requests = static_cast<int64_t>(count) + 1;
  HttpOptions http;
  http.max_connections = static_cast<int64_t>(count) + 16;
  Live live(options, http);
  const auto alone = texts_alone(live);
  std::mt19937 rng(7);
  std::vector<Client> clients(count);
  size_t leaving = 0;
  for (Client& c : clients) {
    c.kind = rng() % kKinds;
    if (rng() % 10 < 3) {
      // Before the head, within it, between events, or near the end.
      c.leaves_after = rng() % 4 == 0 ? 0 : rng() % 4000;
      ++leaving;
    }
  }
  EXPECT_GT(leaving, count / 5);
  run_clients(live, clients);
  for (const Client& c : clients) {
    if (c.leaves_after != SIZE_MAX) continue;
    ASSERT_EQ(status_of(c.answer), 200) << c.answer;
    EXPECT_EQ(text_of_events(c.answer), alone.at(c.kind)) << body_of_kind(c.kind, true);
  }
  EXPECT_TRUE(live.settles());
  EXPECT_EQ(texts_alone(live), alone);
}

// Ten times more than there is room for: the rest is sent away at once, with a time to come again.
TEST(SoakLive, OverloadIsRefusedAndWhatWasAdmittedIsServed) {
  const size_t room = streams_wanted(120) / 10;
  AppOptions options;
  options.max_requests = static_cast<int64_t>(room);
  Live live(options);
  const auto alone = texts_alone(live);
  std::vector<Client> clients(10 * room);
  for (size_t i = 0; i < clients.size(); ++i) clients[i].kind = i % kKinds;
  run_clients(live, clients);
  size_t served = 0;
  for (const Client& c : clients) {
    if (status_of(c.answer) == 200) {
      ++served;
      EXPECT_EQ(text_of_events(c.answer), alone.at(c.kind));
      continue;
    }
    EXPECT_TRUE(status_of(c.answer) == 429 || status_of(c.answer) == 503) << c.answer;
    EXPECT_NE(c.answer.find("Retry-After: "), std::string::npos) << c.answer;
  }
  EXPECT_GE(served, room);
  EXPECT_LT(served, clients.size());
  EXPECT_TRUE(live.settles());
}

// What `tamis bench serve` tells of a server is what the server did.
TEST(SoakLive, TheLoadGeneratorCountsWhatItWasAnswered) {
  AppOptions options;
  options.max_requests = 4;
  Live live(options);
  LoadOptions load;
  load.port = live.port();
  load.requests = 12;
  load.prompt_words = 8;
  load.shared_words = 80;
  load.max_tokens = 6;
  for (const double rate : {0.0, 200.0}) {
    load.concurrency = 4;
    load.rate = rate;
    const LoadReport r = run_load(load);
    EXPECT_EQ(r.failed, 0);
    EXPECT_EQ(r.complete + r.refused, load.requests);
    EXPECT_GT(r.complete, 0);
    EXPECT_EQ(r.completion_tokens, r.complete * load.max_tokens);
    EXPECT_GT(r.cached_tokens, 0);
    EXPECT_LT(r.cached_tokens, r.prompt_tokens);
    EXPECT_GT(r.first.p50, 0);
    EXPECT_GE(r.total.p50, r.first.p50);
    EXPECT_GE(r.seconds, r.total.max);
  }
  load.max_tokens = 1 << 20;  // more than the context holds: an error, not an answer
  EXPECT_EQ(run_load(load).failed, load.requests);
  EXPECT_TRUE(live.settles());
}

}  // namespace
}  // namespace tamis::server
