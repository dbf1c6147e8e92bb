// The routes of the server.
//
//   App app(options);
//   HttpServer http(http_options, app);   // answers "loading" from here on
//   app.serve(model, engine);             // and this from here on
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/access.h"
#include "server/api_error.h"
#include "server/call.h"
#include "server/constraint_cache.h"
#include "server/engine_thread.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/reply.h"
#include "server/served_model.h"
#include "server/work_queue.h"

namespace tamis::server {

struct AppOptions {
  AccessOptions access;
  std::string version;
  int64_t max_requests = 256;  // running and waiting; more get 429
  int workers = 2;
  bool access_log = true;
  std::chrono::milliseconds stall_limit{120'000};  // a pass longer than this is a fault
};

class App final : public HttpService {
 public:
  explicit App(AppOptions options);
  ~App() override;

  // What belongs to a request is over before stop() returns; model and engine must live until then.
  void serve(const ServedModel& model, EngineThread& engine);
  void begin_drain() { draining_ = true; }
  void stop();
  Metrics& metrics() { return metrics_; }

  std::optional<HttpResponse> refuse(const HttpRequest& head) override;
  std::vector<HttpHeader> common_headers(const HttpRequest& head) override;
  void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override;
  HttpResponse protocol_error(int status, std::string_view message) override;
  void log(const AccessRecord& record) override;

 private:
  enum class Kind : uint8_t { kOpen, kQuick, kModel, kGenerate };
  using Handler = HttpResponse (App::*)(const HttpRequest&);
  struct Route {
    const char* method;
    const char* path;
    Kind kind;
    Handler answer;  // null for kGenerate
  };
  static const std::vector<Route>& routes();
  static const Route* find_route(const HttpRequest& request, bool& path_known);
  static std::string methods_of(HttpRequest request);

  std::optional<ApiError> check(const HttpRequest& head) const;
  std::optional<HttpResponse> preflight(const HttpRequest& head) const;
  // Answers with what the function returns or throws.
  template <typename F>
  void answer(const HttpRequest& request, Exchange& exchange, F make);
  void generate(const HttpRequest& request, const std::shared_ptr<Exchange>& exchange,
                std::shared_ptr<void> slot, std::chrono::steady_clock::time_point arrival);
  std::shared_ptr<void> take_slot();
  std::shared_ptr<Constraint> constraint_of(const Call& call);
  const ServedModel& model() const { return *model_; }

  HttpResponse web_page(const HttpRequest& request);
  HttpResponse livez(const HttpRequest& request);
  HttpResponse health(const HttpRequest& request);
  HttpResponse metrics_page(const HttpRequest& request);
  HttpResponse version(const HttpRequest& request);
  HttpResponse props(const HttpRequest& request);
  HttpResponse models(const HttpRequest& request);
  HttpResponse tokenize(const HttpRequest& request);
  HttpResponse detokenize(const HttpRequest& request);
  HttpResponse apply_template(const HttpRequest& request);
  HttpResponse embeddings(const HttpRequest& request);
  HttpResponse count_tokens(const HttpRequest& request);

  AppOptions options_;
  AccessControl access_;
  Metrics metrics_;
  WorkQueue work_;
  std::unique_ptr<ConstraintCache> constraints_;
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<EngineThread*> engine_{nullptr};
  std::atomic<bool> draining_{false};
  std::atomic<int64_t> slots_{0};
  std::mutex log_mutex_;
};

}  // namespace tamis::server
