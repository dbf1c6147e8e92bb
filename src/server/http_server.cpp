// The only file that sees Boost. GCC 12 destroys some temporaries of a co_await expression twice
// (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=101976), so operands with strings are variables
// here.
//
// Beast gives streams with time limits; requests are read by http_parser.h, because Beast accepts
// folded headers and skips transfer codings that it does not know.
#include "server/http_server.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/experimental/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <cstdio>
#include <ctime>
#include <random>
#include <thread>
#include <vector>

#include "base/error.h"

namespace tamis::server {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Strand = asio::strand<asio::io_context::executor_type>;

struct HttpServer::State {
  State(const HttpOptions& o, HttpService& s)
      : options(o), service(s), io(std::max(1, o.threads)), acceptor(io), drain_timer(io) {}

  HttpOptions options;
  HttpService& service;
  asio::io_context io;
  tcp::acceptor acceptor;
  asio::steady_timer drain_timer;
  std::unique_ptr<asio::ssl::context> tls;
  uint16_t port = 0;
  std::atomic<int64_t> connections{0}, answering{0}, body_bytes{0};
  std::atomic<bool> draining{false};
  std::chrono::milliseconds drain_timeout{30'000};
  std::function<void()> on_drain;

  std::atomic<uint64_t> next_id{std::random_device{}() * (uint64_t{1} << 32)};

  void listen();
  void drain();
  std::string name_of(const HttpRequest& request);
  // One exchange fewer; the last one of a draining server ends it.
  void finished() {
    if (answering.fetch_sub(1) == 1 && draining) io.stop();
  }
};

namespace {

constexpr auto kTuple = asio::experimental::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 64 << 10;

struct HeadContext {
  const std::string& request_id;
  const std::vector<HttpHeader>& common;
  bool keep_alive;
};

// Neither a body nor its length (RFC 9110, 8.6).
bool has_no_content(int status) { return status == 204 || status == 304; }

// "Sun, 06 Nov 1994 08:49:37 GMT", in the names of RFC 9110 whatever the locale is.
std::string http_date() {
  static constexpr std::array kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr std::array kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%s, %02d %s %04d %02d:%02d:%02d GMT",
                kDays.at(static_cast<size_t>(utc.tm_wday)), utc.tm_mday,
                kMonths.at(static_cast<size_t>(utc.tm_mon)), utc.tm_year + 1900, utc.tm_hour,
                utc.tm_min, utc.tm_sec);
  return text.data();
}

// length -1: the caller says how the body is framed.
std::string head_text(const HttpResponse& r, const HeadContext& context, int64_t length) {
  std::string out = "HTTP/1.1 " + std::to_string(r.status) + " ";
  out += status_text(r.status);
  out += "\r\nDate: " + http_date() + "\r\n";
  if (!r.content_type.empty()) out += "Content-Type: " + r.content_type + "\r\n";
  for (const HttpHeader& h : r.headers) out += h.name + ": " + h.value + "\r\n";
  for (const HttpHeader& h : context.common) out += h.name + ": " + h.value + "\r\n";
  if (!context.request_id.empty()) out += "X-Request-Id: " + context.request_id + "\r\n";
  out += "X-Content-Type-Options: nosniff\r\n";
  const bool stored = std::any_of(r.headers.begin(), r.headers.end(),
                                  [](const HttpHeader& h) { return h.name == "Cache-Control"; });
  if (!stored) out += "Cache-Control: no-store\r\n";
  if (length >= 0 && !has_no_content(r.status))
    out += "Content-Length: " + std::to_string(length) + "\r\n";
  out += context.keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  return out;
}

std::string chunk_of(const std::string& data) {
  static const char kHex[] = "0123456789abcdef";
  std::string size;
  for (size_t n = data.size(); n > 0; n >>= 4) size.insert(size.begin(), kHex[n & 15]);
  return size + "\r\n" + data + "\r\n";
}

// The answer of one request. Its state is touched on the strand of its connection alone.
class AnswerInProgress final : public Exchange,
                               public std::enable_shared_from_this<AnswerInProgress> {
 public:
  AnswerInProgress(Strand strand, int64_t max_unsent)
      : strand_(std::move(strand)), wake_(strand_), max_unsent_(max_unsent) {}

  void post(std::function<void()> job) override { asio::post(strand_, std::move(job)); }

  void respond(HttpResponse response) override {
    on_strand([r = std::move(response)](AnswerInProgress& x) mutable {
      if (x.head_) return;
      x.body_ = std::move(r.body);
      x.head_ = std::move(r);
      x.ended_ = true;
    });
  }

  void begin(HttpResponse head, std::string ping) override {
    on_strand([h = std::move(head), p = std::move(ping)](AnswerInProgress& x) mutable {
      if (x.head_) return;
      x.streams_ = true;
      x.ping_ = std::move(p);
      x.head_ = std::move(h);
    });
  }

  void write(std::string data) override {
    on_strand([d = std::move(data)](AnswerInProgress& x) {
      if (x.ended_ || x.closed_) return;
      x.body_ += d;
      if (x.streams_ && static_cast<int64_t>(x.body_.size()) > x.max_unsent_) x.give_up();
    });
  }

  void end() override {
    on_strand([](AnswerInProgress& x) { x.ended_ = true; });
  }

  void on_close(std::function<void()> callback) override {
    on_strand([c = std::move(callback)](AnswerInProgress& x) mutable {
      x.on_close_ = std::move(c);
      if (x.closed_) x.close(x.delivered_);
    });
  }

  // For the connection, on the strand.
  void close(bool delivered) {
    closed_ = true;
    delivered_ = delivered;
    const auto callback = std::exchange(on_close_, nullptr);
    if (callback && !delivered) callback();
  }
  const HttpResponse* head() const { return head_ ? &*head_ : nullptr; }
  bool streams() const { return streams_; }
  bool ended() const { return ended_; }
  bool overflowed() const { return overflowed_; }
  std::string take() { return std::exchange(body_, {}); }
  bool empty() const { return body_.empty(); }
  const std::string& ping() const { return ping_; }

  // Until something has changed (true) or the time has passed (false).
  asio::awaitable<bool> wait(Clock::duration limit) {
    wake_.expires_after(limit);
    const auto [error] = co_await wake_.async_wait(kTuple);
    co_return bool(error);
  }

 private:
  // Of a client that takes less than comes: at once, as a write to it may stand still for long.
  void give_up() {
    overflowed_ = true;
    body_ = {};
    close(false);
  }
  template <typename F>
  void on_strand(F change) {
    asio::dispatch(strand_, [self = shared_from_this(), c = std::move(change)]() mutable {
      c(*self);
      self->wake_.cancel();
    });
  }

  Strand strand_;
  asio::steady_timer wake_;
  int64_t max_unsent_;
  std::optional<HttpResponse> head_;
  std::string body_, ping_;
  bool streams_ = false, ended_ = false, closed_ = false, delivered_ = false, overflowed_ = false;
  std::function<void()> on_close_;
};

template <typename Stream>
class Connection : public std::enable_shared_from_this<Connection<Stream>> {
 public:
  Connection(HttpServer::State& server, Stream stream, Strand strand)
      : server_(server), options_(server.options), stream_(std::move(stream)), strand_(strand) {
    server_.connections.fetch_add(1);
  }
  ~Connection() {
    server_.body_bytes.fetch_sub(body_held_);
    server_.connections.fetch_sub(1);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  asio::awaitable<void> run() {
    try {
      if (co_await handshake()) {
        while (co_await one_request()) {
        }
      }
    } catch (const std::exception&) {
      // The socket failed: nobody is left to be told.
    }
    co_await close();
  }

 private:
  beast::tcp_stream& socket() { return beast::get_lowest_layer(stream_); }

  asio::awaitable<bool> handshake() {
    if constexpr (!std::is_same_v<Stream, beast::tcp_stream>) {
      socket().expires_after(options_.header_timeout);
      const auto [error] = co_await stream_.async_handshake(asio::ssl::stream_base::server, kTuple);
      secure_ = !error;
      co_return secure_;
    }
    co_return true;
  }

  // Lets the client read the answer before the connection is torn down by bytes that it still
  // sends and nobody reads.
  asio::awaitable<void> close() {
    socket().expires_after(std::chrono::seconds(2));
    if constexpr (!std::is_same_v<Stream, beast::tcp_stream>) {
      if (secure_) co_await stream_.async_shutdown(kTuple);
    }
    error_code ignored;
    socket().socket().shutdown(tcp::socket::shutdown_send, ignored);
    buffer_.resize(kReadBytes);
    while (linger_) {
      const auto [error, n] = co_await socket().async_read_some(asio::buffer(buffer_), kTuple);
      if (error || n == 0) break;
    }
    socket().close();
  }

  // Feeds the parser until its state changes from `state`. False at the end of the stream or of
  // the time; answers 408 for the latter if something had been sent.
  asio::awaitable<bool> feed(HttpParser& parser, HttpParser::State state) {
    while (parser.state() == state) {
      if (buffer_.empty()) {
        buffer_.resize(kReadBytes);
        const auto [error, n] = co_await stream_.async_read_some(asio::buffer(buffer_), kTuple);
        buffer_.resize(error ? 0 : n);
        received_ += static_cast<int64_t>(buffer_.size());
        timed_out_ = error == beast::error::timeout;
        if (error || n == 0) co_return false;
      }
      buffer_.erase(0, parser.push(buffer_));
      if (state == HttpParser::State::kBody && !hold_body(parser)) co_return false;
      if (state == HttpParser::State::kHead && parser.started()) begin_head();
    }
    co_return true;
  }

  // The time of a head runs from its first byte.
  void begin_head() {
    if (head_started_) return;
    head_started_ = true;
    start_ = Clock::now();
    socket().expires_after(options_.header_timeout);
  }

  // Counts the body against the budget and the clock.
  bool hold_body(HttpParser& parser) {
    const auto held = static_cast<int64_t>(parser.request().body.capacity());
    server_.body_bytes.fetch_add(held - body_held_);
    body_held_ = held;
    const auto late = Clock::now() - body_start_ - options_.body_grace;
    const double seconds = std::chrono::duration<double>(late).count();
    const double wanted = seconds * static_cast<double>(options_.min_body_rate);
    const auto got = static_cast<double>(received_ - body_from_);
    timed_out_ = seconds > 0 && got < wanted;
    too_busy_ = server_.body_bytes > options_.body_budget;
    socket().expires_after(options_.body_grace);
    return !timed_out_ && !too_busy_;
  }

  asio::awaitable<bool> one_request() {
    HttpParser parser(options_.limits);
    head_started_ = false;
    socket().expires_after(first_ ? options_.header_timeout : options_.idle_timeout);
    start_ = Clock::now();
    if (server_.draining && !first_) co_return false;
    first_ = false;
    if (!co_await feed(parser, HttpParser::State::kHead)) {
      if (timed_out_ && parser.started()) co_await refuse(parser, 408, "the header took too long");
      co_return false;
    }
    if (parser.state() == HttpParser::State::kError) {
      co_return co_await refuse(parser, parser.error_status(), parser.error());
    }
    server_.answering.fetch_add(1);
    const std::shared_ptr<void> counted(nullptr, [this](void*) { server_.finished(); });
    co_return co_await answer(parser);
  }

  asio::awaitable<bool> answer(HttpParser& parser) {
    parser.request().id = server_.name_of(parser.request());
    common_ = server_.service.common_headers(parser.request());
    if (auto response = server_.service.refuse(parser.request())) {
      // An unread body would be taken for the next request.
      if (parser.request().has_body) response->close = true;
      co_return co_await send_whole(parser, *response);
    }
    parser.resume();
    if (parser.state() == HttpParser::State::kBody) {
      body_start_ = Clock::now();
      body_from_ = received_ - static_cast<int64_t>(buffer_.size());
      socket().expires_after(options_.body_grace);
      if (parser.expects_continue() && buffer_.empty()) {
        co_await asio::async_write(stream_, asio::buffer(kContinue, sizeof kContinue - 1),
                                   asio::use_awaitable);
      }
      if (!co_await feed(parser, HttpParser::State::kBody)) {
        if (too_busy_) co_return co_await refuse(parser, 503, "too many large requests at once");
        if (timed_out_) co_await refuse(parser, 408, "the body took too long");
        co_return false;
      }
      if (parser.state() == HttpParser::State::kError) {
        co_return co_await refuse(parser, parser.error_status(), parser.error());
      }
    }
    socket().expires_never();
    co_return co_await serve(parser);
  }

  asio::awaitable<bool> serve(HttpParser& parser) {
    using namespace asio::experimental::awaitable_operators;
    auto exchange = std::make_shared<AnswerInProgress>(strand_, options_.max_unsent);
    record_ = {};
    record_.method = parser.request().method;
    record_.path = parser.request().path;
    record_.id = parser.request().id;
    const bool keep = parser.keep_alive();
    const bool http10 = parser.request().http10;
    server_.service.handle(std::move(parser.request()), exchange);
    keep_ = keep;
    // The first of the two to return ends the other.
    const auto who = co_await (send(*exchange, http10) || watch());
    const bool complete = who.index() == 0 && std::get<0>(who);
    exchange->close(complete);
    server_.body_bytes.fetch_sub(std::exchange(body_held_, 0));
    finish_record(complete);
    co_return complete&& keep_;
  }

  // True if all of the answer was written.
  asio::awaitable<bool> send(AnswerInProgress& exchange, bool http10) {
    try {
      while (exchange.head() == nullptr) co_await exchange.wait(std::chrono::hours(24));
      const HttpResponse& head = *exchange.head();
      keep_ = keep_ && !head.close && !server_.draining;
      record_.status = head.status;
      const bool body = record_.method != "HEAD" && !has_no_content(head.status);
      if (!exchange.streams()) {
        const std::string content = exchange.take();
        std::string text =
            head_text(head, context(keep_), static_cast<int64_t>(content.size())) + "\r\n";
        if (body) text += content;
        co_await write(text);
        co_return true;
      }
      if (http10) keep_ = false;  // the end of the connection ends the body
      std::string text = head_text(head, context(keep_), -1);
      text += http10 ? "\r\n" : "Transfer-Encoding: chunked\r\n\r\n";
      co_await write(text);
      co_await send_pieces(exchange, http10);
      co_return true;
    } catch (const std::exception&) {
      co_return false;
    }
  }

  asio::awaitable<void> send_pieces(AnswerInProgress& exchange, bool http10) {
    while (!exchange.ended() || !exchange.empty() || exchange.overflowed()) {
      if (exchange.overflowed()) throw DeviceError("the client reads too slowly");
      std::string data = exchange.take();
      if (data.empty()) {
        const bool woken = co_await exchange.wait(options_.ping_interval);
        if (woken || !exchange.empty() || exchange.ping().empty()) continue;
        data = exchange.ping();
      }
      if (!http10) data = chunk_of(data);
      co_await write(data);
    }
    if (!http10) co_await write(kLastChunk);
  }

  // Pieces, so that the time limit is on standing still and not on the whole.
  asio::awaitable<void> write(std::string_view text) {
    while (!text.empty()) {
      const std::string_view part = text.substr(0, kReadBytes);
      socket().expires_after(options_.write_timeout);
      co_await asio::async_write(stream_, asio::buffer(part.data(), part.size()),
                                 asio::use_awaitable);
      record_.bytes_out += static_cast<int64_t>(part.size());
      text.remove_prefix(part.size());
    }
    socket().expires_never();
  }

  // Returns when the client has gone. Requests that it sends ahead stay where they are.
  asio::awaitable<bool> watch() {
    asio::steady_timer pause(strand_);
    while (true) {
      const auto [error] = co_await socket().socket().async_wait(tcp::socket::wait_read, kTuple);
      if (error) break;
      pollfd p{socket().socket().native_handle(), POLLRDHUP, 0};
      ::poll(&p, 1, 0);
      if ((p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0) break;
      pause.expires_after(std::chrono::milliseconds(100));
      const auto [cancelled] = co_await pause.async_wait(kTuple);
      if (cancelled) co_return true;
    }
    error_code ignored;
    socket().socket().cancel(ignored);
    co_return true;
  }

  HeadContext context(bool keep_alive) const { return {record_.id, common_, keep_alive}; }

  asio::awaitable<bool> refuse(HttpParser& parser, int status, std::string_view message) {
    HttpResponse response = server_.service.protocol_error(status, message);
    response.close = true;
    co_return co_await send_whole(parser, response);
  }

  // Without an exchange: the request is not looked at further.
  asio::awaitable<bool> send_whole(HttpParser& parser, const HttpResponse& response) {
    record_ = {};
    record_.method = parser.request().method;
    record_.path = parser.request().path;
    record_.id = parser.request().id;
    record_.status = response.status;
    const bool keep = parser.keep_alive() && !response.close && !server_.draining;
    linger_ = !keep;
    std::string text =
        head_text(response, context(keep), static_cast<int64_t>(response.body.size())) + "\r\n";
    if (record_.method != "HEAD") text += response.body;
    co_await write(text);
    finish_record(true);
    co_return keep;
  }

  void finish_record(bool complete) {
    record_.completed = complete;
    record_.bytes_in = std::exchange(received_, 0);
    record_.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    server_.service.log(record_);
  }

  static constexpr std::string_view kLastChunk = "0\r\n\r\n";
  static constexpr char kContinue[] = "HTTP/1.1 100 Continue\r\n\r\n";

  HttpServer::State& server_;
  const HttpOptions& options_;
  Stream stream_;
  Strand strand_;
  std::string buffer_;  // received and not used yet
  AccessRecord record_;
  std::vector<HttpHeader> common_;
  Clock::time_point start_, body_start_;
  int64_t received_ = 0, body_from_ = 0, body_held_ = 0;
  bool first_ = true, head_started_ = false, timed_out_ = false, too_busy_ = false;
  bool keep_ = false, linger_ = false, secure_ = false;
};

template <typename Stream>
void start(HttpServer::State& server, Stream stream, const Strand& strand) {
  auto connection = std::make_shared<Connection<Stream>>(server, std::move(stream), strand);
  asio::co_spawn(
      strand, [connection] { return connection->run(); }, asio::detached);
}

constexpr char kFull[] =
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    "Connection: close\r\n\r\n";

asio::awaitable<void> accept_all(HttpServer::State& server) {
  asio::steady_timer pause(server.io);
  while (true) {
    const Strand strand = asio::make_strand(server.io);
    tcp::socket socket(strand);
    const auto [error] = co_await server.acceptor.async_accept(socket, kTuple);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      // Out of file descriptors, or the client has gone already.
      pause.expires_after(std::chrono::milliseconds(50));
      co_await pause.async_wait(kTuple);
      continue;
    }
    error_code ignored;
    if (server.connections >= server.options.max_connections) {
      socket.non_blocking(true, ignored);
      socket.send(asio::buffer(kFull, sizeof kFull - 1), 0, ignored);
      continue;
    }
    socket.set_option(tcp::no_delay(true), ignored);
    beast::tcp_stream stream(std::move(socket));
    if (server.tls) {
      start(server, beast::ssl_stream<beast::tcp_stream>(std::move(stream), *server.tls), strand);
    } else {
      start(server, std::move(stream), strand);
    }
  }
}

std::unique_ptr<asio::ssl::context> make_tls(const HttpOptions& options) {
  if (options.tls_certificate.empty() && options.tls_key.empty()) return nullptr;
  if (options.tls_certificate.empty() || options.tls_key.empty()) {
    throw UsageError("TLS needs both a certificate and its key");
  }
  auto tls = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
  tls->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
                   asio::ssl::context::no_tlsv1_1);
  error_code error;
  tls->use_certificate_chain_file(options.tls_certificate, error);
  if (error) throw InputError(options.tls_certificate + ": " + error.message());
  tls->use_private_key_file(options.tls_key, asio::ssl::context::pem, error);
  if (error) throw InputError(options.tls_key + ": " + error.message());
  return tls;
}

}  // namespace

void HttpServer::State::listen() {
  error_code error;
  const auto address =
      asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, error);
  if (error) throw UsageError("--host: want an IP address, got '" + printable(options.host) + "'");
  const tcp::endpoint endpoint(address, options.port);
  const auto check = [&](const char* what) {
    if (!error) return;
    throw DeviceError(std::string(what) + " " + options.host + ":" + std::to_string(options.port) +
                      ": " + error.message());
  };
  acceptor.open(endpoint.protocol(), error);
  check("opening");
  acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  acceptor.bind(endpoint, error);
  check("listening on");
  acceptor.listen(1024, error);
  check("listening on");
  port = acceptor.local_endpoint().port();
}

// The client's own name for the request if it is harmless in a header and a log, or a new one.
std::string HttpServer::State::name_of(const HttpRequest& request) {
  const std::string* given = request.header("x-request-id");
  const auto harmless = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' ||
           c == '_' || c == '.';
  };
  if (given != nullptr && !given->empty() && given->size() <= 64 &&
      std::all_of(given->begin(), given->end(), harmless)) {
    return *given;
  }
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "%016llx",
                static_cast<unsigned long long>(next_id.fetch_add(1)));
  return text.data();
}

// New requests are refused by the service from here on; the port stays open so that they hear it.
void HttpServer::State::drain() {
  if (draining.exchange(true)) return io.stop();
  if (on_drain) on_drain();
  if (answering == 0) return io.stop();
  drain_timer.expires_after(drain_timeout);
  drain_timer.async_wait([this](const error_code& error) {
    if (!error) io.stop();
  });
}

HttpServer::HttpServer(const HttpOptions& options, HttpService& service)
    : state_(std::make_unique<State>(options, service)) {
  state_->tls = make_tls(options);
  state_->listen();
}

HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const { return state_->port; }
int64_t HttpServer::connections() const { return state_->connections; }

void HttpServer::run(bool signals, std::chrono::milliseconds drain_timeout,
                     const std::function<void()>& on_drain) {
  State& s = *state_;
  s.drain_timeout = drain_timeout;
  s.on_drain = on_drain;
  asio::signal_set set(s.io);
  std::function<void()> wait = [&] {
    set.async_wait([&](const error_code& error, int) {
      if (error) return;
      wait();
      s.drain();
    });
  };
  if (signals) {
    set.add(SIGTERM);
    set.add(SIGINT);
    wait();
  }
  asio::co_spawn(s.io, accept_all(s), asio::detached);
  std::vector<std::thread> others;
  for (int i = 1; i < s.options.threads; ++i) others.emplace_back([&s] { s.io.run(); });
  s.io.run();
  for (std::thread& t : others) t.join();
}

void HttpServer::drain() {
  asio::post(state_->io, [s = state_.get()] { s->drain(); });
}

void HttpServer::stop() { state_->io.stop(); }

}  // namespace tamis::server
