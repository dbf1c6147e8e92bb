// What the routes know of HTTP: a request, an answer, and the exchange that joins them. No header
// of an HTTP library is seen outside http_server.cpp.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tamis::server {

struct HttpHeader {
  std::string name, value;
};

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // "/v1/models", without the query
  std::string query;
  std::vector<HttpHeader> headers;
  std::string body;
  std::string id;  // names the request in the log and in X-Request-Id
  bool http10 = false;
  bool has_body = false;

  // The first header of that name in any case; nullptr if there is none.
  const std::string* header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;  // without Cache-Control: the answer is not to be stored
  std::string body;
  bool close = false;  // end the connection after it
};

// "Not Found" of 404.
std::string_view status_text(int status);

// One request being answered: exactly one respond(), or begin(), any number of write(), end().
// Every call may come from any thread; calls of one thread keep their order. When the client has
// gone they do nothing.
class Exchange {
 public:
  virtual ~Exchange() = default;

  // Runs the job after earlier ones, never two at a time: the place for what belongs to this
  // exchange alone. It runs whether the client is there or not.
  virtual void post(std::function<void()> job) = 0;

  virtual void respond(HttpResponse response) = 0;
  // The body follows in pieces. When nothing has been written for a while, `ping` is.
  virtual void begin(HttpResponse head, std::string ping) = 0;
  virtual void write(std::string data) = 0;
  virtual void end() = 0;

  // Called once, as a job, when the client goes before the answer is complete.
  virtual void on_close(std::function<void()> callback) = 0;
};

struct AccessRecord {
  std::string method, path, id;
  int status = 0;
  int64_t bytes_in = 0, bytes_out = 0;
  double seconds = 0;
  bool completed = true;  // false: the client went, or was too slow
};

// What a server serves. Calls come from several threads.
class HttpService {
 public:
  virtual ~HttpService() = default;
  // Sees the request before its body is read. An answer ends the request there.
  virtual std::optional<HttpResponse> refuse(const HttpRequest& head) = 0;
  // Headers that every answer to this request has.
  virtual std::vector<HttpHeader> common_headers(const HttpRequest& head) = 0;
  // Must not take long: it runs on a thread that serves other connections too.
  virtual void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) = 0;
  // The answer to a request that is not HTTP as we accept it, or too large, or too slow.
  virtual HttpResponse protocol_error(int status, std::string_view message) = 0;
  virtual void log(const AccessRecord& record) = 0;
};

// ASCII letters only; what header names need.
bool equal_ignoring_case(std::string_view a, std::string_view b);

}  // namespace tamis::server
