#include "server/load_generator.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "base/json.h"

namespace tamis::server {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxOpen = 16'000;

std::string prompt_of(const LoadOptions& o, int64_t request) {
  static constexpr std::string_view kWords[] = {
      "package", "file",  "system", "library", "the",  "of",   "version", "server",
      "network", "tools", "data",   "support", "with", "from", "program", "language"};
  std::string text;
  const auto add = [&](std::mt19937_64& rng, int64_t words) {
    for (int64_t i = 0; i < words; ++i) {
      text += text.empty() ? "" : " ";
      text += kWords[rng() % std::size(kWords)];
    }
  };
  std::mt19937_64 shared(o.seed), own(o.seed + 1 + static_cast<uint64_t>(request));
  add(shared, o.shared_words);
  add(own, std::max<int64_t>(o.prompt_words, o.shared_words > 0 ? 0 : 1));
  return text;
}

std::string request_text(const LoadOptions& o, int64_t request) {
  const Json body{{"prompt", prompt_of(o, request)},
                  {"max_tokens", o.max_tokens},
                  {"ignore_eos", true},
                  {"temperature", 0},
                  {"stream", true},
                  {"stream_options", {{"include_usage", true}}}};
  const std::string text = body.dump();
  return "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
         "Content-Type: application/json\r\n" +
         (o.api_key.empty() ? "" : "Authorization: Bearer " + o.api_key + "\r\n") +
         "Content-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

struct LoadConnection {
  LoadConnection(int fd, std::string text, size_t i) : socket(fd), out(std::move(text)), index(i) {}
  Descriptor socket;
  std::string out;  // not yet sent
  size_t index;     // of its result
  StreamReader reader;
  double last = 0;  // when the last text came
};

class Load {
 public:
  Load(const LoadOptions& o, const std::function<void(int64_t)>& progress)
      : o_(o), progress_(progress), start_(Clock::now()) {
    address_.sin_family = AF_INET;
    address_.sin_port = htons(o.port);
    if (::inet_pton(AF_INET, o.host.c_str(), &address_.sin_addr) != 1) {
      throw InputError("'" + printable(o.host) + "' is no IPv4 address");
    }
    std::mt19937_64 rng(o.seed);
    std::exponential_distribution<double> wait(o.rate > 0 ? o.rate : 1);
    double at = 0;
    for (int64_t i = 0; i < o.requests; ++i) {
      due_.push_back(at);
      if (o.rate > 0) at += wait(rng);
    }
  }

  LoadReport run() {
    report_.results.reserve(due_.size());
    while (next_ < due_.size() || !open_.empty()) {
      begin_due();
      wait();
      for (auto& c : open_) serve(*c);
      std::erase_if(open_, [](const auto& c) { return c == nullptr || c->index == kOver; });
    }
    report_.seconds = now();
    return std::move(report_);
  }

 private:
  static constexpr size_t kOver = SIZE_MAX;
  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  void begin_due() {
    while (next_ < due_.size() && open_.size() < kMaxOpen) {
      const bool closed = o_.rate <= 0;
      if (closed ? static_cast<int64_t>(open_.size()) >= o_.concurrency : due_[next_] > now()) {
        return;
      }
      begin(closed ? now() : due_[next_]);
    }
  }

  void begin(double arrival) {
    const auto request = static_cast<int64_t>(next_++);
    report_.results.emplace_back();
    report_.results.back().arrival = arrival;
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) throw_errno("socket");
    auto c =
        std::make_unique<LoadConnection>(fd, request_text(o_, request), report_.results.size() - 1);
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const auto* to = reinterpret_cast<const sockaddr*>(&address_);
    if (::connect(fd, to, sizeof address_) != 0 && errno != EINPROGRESS) return over(*c);
    open_.push_back(std::move(c));
  }

  void wait() {
    polls_.clear();
    for (const auto& c : open_) {
      const auto events = static_cast<short>(c->out.empty() ? POLLIN : POLLIN | POLLOUT);
      polls_.push_back({c->socket.get(), events, 0});
    }
    double seconds = 1;
    if (o_.rate > 0 && next_ < due_.size()) seconds = std::clamp(due_[next_] - now(), 0.0, 1.0);
    ::poll(polls_.data(), polls_.size(), static_cast<int>(std::ceil(seconds * 1e3)));
  }

  void serve(LoadConnection& c) {
    if (!send(c)) return over(c);
    char bytes[16384];
    while (true) {
      const ssize_t n = ::recv(c.socket.get(), bytes, sizeof bytes, 0);
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (n <= 0) return over(c);
      took(c, c.reader.push({bytes, static_cast<size_t>(n)}));
      if (c.reader.complete()) return over(c);
    }
    if (now() - report_.results[c.index].arrival > o_.timeout_s) over(c);
  }

  static bool send(LoadConnection& c) {
    while (!c.out.empty()) {
      const ssize_t n = ::send(c.socket.get(), c.out.data(), c.out.size(), MSG_NOSIGNAL);
      if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOTCONN;
      c.out.erase(0, static_cast<size_t>(n));
    }
    return true;
  }

  void took(LoadConnection& c, int64_t texts) {
    LoadResult& r = report_.results[c.index];
    for (int64_t i = 0; i < texts; ++i) {
      const double at = now();
      if (r.first == 0) {
        r.first = at - r.arrival;
      } else {
        r.gaps.push_back(at - c.last);
      }
      c.last = at;
    }
  }

  void over(LoadConnection& c) {
    LoadResult& r = report_.results[c.index];
    r.total = now() - r.arrival;
    r.status = c.reader.status();
    r.complete = c.reader.complete();
    r.prompt_tokens = c.reader.prompt_tokens();
    r.cached_tokens = c.reader.cached_tokens();
    r.completion_tokens = c.reader.completion_tokens();
    c.index = kOver;
    ++done_;
    if (progress_) progress_(done_);
  }

  const LoadOptions& o_;
  const std::function<void(int64_t)>& progress_;
  Clock::time_point start_;
  sockaddr_in address_{};
  std::vector<double> due_;
  size_t next_ = 0;
  int64_t done_ = 0;
  std::vector<std::unique_ptr<LoadConnection>> open_;
  std::vector<pollfd> polls_;
  LoadReport report_;
};

}  // namespace

bool StreamReader::read_head() {
  const size_t end = raw_.find("\r\n\r\n");
  if (end == std::string::npos) return false;
  if (raw_.size() > 12) std::from_chars(raw_.data() + 9, raw_.data() + 12, status_);
  chunked_ = raw_.substr(0, end).find("chunked") != std::string::npos;
  raw_.erase(0, end + 4);
  return true;
}

void StreamReader::read_chunks() {
  if (!chunked_) {
    body_ += std::exchange(raw_, {});
    return;
  }
  while (!raw_.empty()) {
    if (chunk_left_ == 0) {
      const size_t end = raw_.find("\r\n");
      if (end == std::string::npos) return;
      if (end > 0) {  // else the line's end behind a chunk
        size_t size = 0;
        std::from_chars(raw_.data(), raw_.data() + end, size, 16);
        chunk_left_ = size;
      }
      raw_.erase(0, end + 2);
      continue;
    }
    const size_t n = std::min(chunk_left_, raw_.size());
    body_.append(raw_, 0, n);
    raw_.erase(0, n);
    chunk_left_ -= n;
  }
}

bool StreamReader::on_event(std::string_view data) {
  if (data == "[DONE]") {
    complete_ = true;
    return false;
  }
  const Json event = parse_json(data, "event");
  if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
    prompt_tokens_ = usage->at("prompt_tokens").get<int64_t>();
    completion_tokens_ = usage->at("completion_tokens").get<int64_t>();
    cached_tokens_ = usage->at("prompt_tokens_details").at("cached_tokens").get<int64_t>();
  }
  const auto choices = event.find("choices");
  return choices != event.end() && !choices->empty() &&
         !choices->front().at("text").get<std::string>().empty();
}

int64_t StreamReader::read_events() {
  int64_t texts = 0;
  for (size_t end = body_.find("\n\n"); end != std::string::npos; end = body_.find("\n\n")) {
    const std::string event = body_.substr(0, end);
    body_.erase(0, end + 2);
    if (event.starts_with("data: ") && on_event(std::string_view(event).substr(6))) ++texts;
  }
  return texts;
}

int64_t StreamReader::push(std::string_view bytes) {
  raw_ += bytes;
  if (status_ == 0 && !read_head()) return 0;
  read_chunks();
  return status_ == 200 ? read_events() : 0;
}

Quantiles quantiles(std::vector<double> values) {
  Quantiles q;
  if (values.empty()) return q;
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    return values[std::max<size_t>(rank, 1) - 1];
  };
  for (const double v : values) q.mean += v / static_cast<double>(values.size());
  q.p50 = at(0.5);
  q.p95 = at(0.95);
  q.p99 = at(0.99);
  q.max = values.back();
  return q;
}

LoadReport run_load(const LoadOptions& options, const std::function<void(int64_t)>& progress) {
  LoadReport report = Load(options, progress).run();
  std::vector<double> first, gap, total;
  for (const LoadResult& r : report.results) {
    if (!r.complete) {
      ++(r.status == 429 || r.status == 503 ? report.refused : report.failed);
      continue;
    }
    ++report.complete;
    report.prompt_tokens += r.prompt_tokens;
    report.cached_tokens += r.cached_tokens;
    report.completion_tokens += r.completion_tokens;
    first.push_back(r.first);
    total.push_back(r.total);
    gap.insert(gap.end(), r.gaps.begin(), r.gaps.end());
  }
  report.first = quantiles(std::move(first));
  report.gap = quantiles(std::move(gap));
  report.total = quantiles(std::move(total));
  return report;
}

}  // namespace tamis::server
