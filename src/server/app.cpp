#include "server/app.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "server/running_call.h"
#include "server/web_page.h"

namespace tamis::server {
namespace {

bool is_json(const HttpRequest& request) {
  const std::string* type = request.header("content-type");
  if (type == nullptr) return true;
  const std::string_view media = std::string_view(*type).substr(0, type->find(';'));
  const size_t end = media.find_last_not_of(" \t");
  return equal_ignoring_case(media.substr(0, end + 1), "application/json");
}

bool is_anthropic(const HttpRequest& request) { return request.path.starts_with("/v1/messages"); }

// A page's fetch, not an address that somebody opened.
bool from_script(const HttpRequest& head) {
  const std::string* mode = head.header("sec-fetch-mode");
  return mode != nullptr && *mode != "navigate";
}

// For "Basic" a browser would open its own dialogue over the page, which asks for the key itself.
void ask_for_bearer(HttpResponse& response) {
  for (HttpHeader& h : response.headers) {
    if (h.name == "WWW-Authenticate") h.value = "Bearer realm=\"tamis\"";
  }
}

}  // namespace

App::App(AppOptions options)
    : options_(std::move(options)), access_(options_.access), work_(options_.workers) {}

App::~App() { stop(); }

void App::serve(const ServedModel& model, EngineThread& engine) {
  constraints_ = std::make_unique<ConstraintCache>(
      std::make_shared<TokenTrie>(model.tokenizer, model.model.config().vocab_size));
  engine_ = &engine;
  model_ = &model;
}

void App::stop() {
  draining_ = true;
  work_.stop();
}

const std::vector<App::Route>& App::routes() {
  static const std::vector<Route> kRoutes = {
      {"GET", "/", Kind::kOpen, &App::web_page},
      {"GET", "/livez", Kind::kOpen, &App::livez},
      {"GET", "/health", Kind::kOpen, &App::health},
      {"GET", "/readyz", Kind::kOpen, &App::health},
      {"GET", "/v1/health", Kind::kOpen, &App::health},
      {"GET", "/metrics", Kind::kQuick, &App::metrics_page},
      {"GET", "/version", Kind::kQuick, &App::version},
      {"GET", "/props", Kind::kModel, &App::props},
      {"GET", "/server_info", Kind::kModel, &App::props},
      {"GET", "/v1/models", Kind::kModel, &App::models},
      {"POST", "/tokenize", Kind::kModel, &App::tokenize},
      {"POST", "/detokenize", Kind::kModel, &App::detokenize},
      {"POST", "/apply-template", Kind::kModel, &App::apply_template},
      {"POST", "/v1/embeddings", Kind::kModel, &App::embeddings},
      {"POST", "/v1/chat/completions", Kind::kGenerate, nullptr},
      {"POST", "/v1/completions", Kind::kGenerate, nullptr},
      {"POST", "/v1/messages", Kind::kGenerate, nullptr},
      {"POST", "/v1/messages/count_tokens", Kind::kModel, &App::count_tokens},
      {"POST", "/v1/responses", Kind::kGenerate, nullptr},
  };
  return kRoutes;
}

const App::Route* App::find_route(const HttpRequest& request, bool& path_known) {
  path_known = false;
  for (const Route& r : routes()) {
    const bool one_model = r.path == std::string_view("/v1/models") &&
                           request.path.starts_with("/v1/models/") && request.path.size() > 11;
    const bool of_page = r.path == std::string_view("/") && web_path(request.path);
    if (request.path != r.path && !one_model && !of_page) continue;
    path_known = true;
    const bool head = request.method == "HEAD" && r.method == std::string_view("GET");
    if (request.method == r.method || head) return &r;
  }
  return nullptr;
}

// What the path can be asked by, as Allow lists it.
std::string App::methods_of(HttpRequest request) {
  std::string list;
  bool path_known = false;
  for (const char* method : {"GET", "HEAD", "POST"}) {
    request.method = method;
    if (find_route(request, path_known) != nullptr)
      list += (list.empty() ? "" : ", ") + request.method;
  }
  return list;
}

// Everything that can be said without the body, in the order that tells a stranger the least.
std::optional<ApiError> App::check(const HttpRequest& head) const {
  if (!access_.host_allowed(head)) {
    return ApiError(421, "Host: this server does not go by that name (--allowed-host)");
  }
  if (access_.cross_site(head)) {
    return ApiError(403, "pages of other sites may not use this server (--cors-origin)");
  }
  bool path_known = false;
  const Route* route = find_route(head, path_known);
  const bool open = route != nullptr && route->kind == Kind::kOpen;
  if (!open && access_.key_of(head) < 0) {
    return ApiError(401, "no valid API key was given", "", "invalid_api_key");
  }
  if (route == nullptr) {
    return path_known ? ApiError(405, "this path does not have that method")
                      : ApiError(404, "there is no such path");
  }
  if (head.method == "POST" && !is_json(head)) {
    return ApiError(415, "Content-Type: want application/json");
  }
  if (open || route->kind == Kind::kQuick) return std::nullopt;
  if (draining_) return ApiError(503, "the server is shutting down");
  if (model_.load() == nullptr) return ApiError(503, "the model is being loaded");
  if (route->kind == Kind::kGenerate && slots_ >= options_.max_requests) {
    return ApiError(429, "too many requests are waiting; come again later");
  }
  return std::nullopt;
}

std::optional<HttpResponse> App::preflight(const HttpRequest& head) const {
  if (head.method != "OPTIONS" || access_.allowed_origin(head).empty()) return std::nullopt;
  HttpResponse response;
  response.status = 204;
  response.content_type.clear();
  response.headers = {
      {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
      {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, X-Request-Id"},
      {"Access-Control-Max-Age", "600"}};
  return response;
}

std::optional<HttpResponse> App::refuse(const HttpRequest& head) {
  if (access_.host_allowed(head)) {
    if (auto response = preflight(head)) return response;
  }
  if (const auto error = check(head)) {
    if (error->status() == 429 || error->status() == 503) metrics_.rejected.fetch_add(1);
    HttpResponse response = error_response(*error, is_anthropic(head));
    if (error->status() == 401 && from_script(head)) ask_for_bearer(response);
    if (error->status() == 405) response.headers.push_back({"Allow", methods_of(head)});
    return response;
  }
  return std::nullopt;
}

std::vector<HttpHeader> App::common_headers(const HttpRequest& head) {
  const std::string origin = access_.allowed_origin(head);
  if (origin.empty()) return {};
  return {{"Access-Control-Allow-Origin", origin}, {"Vary", "Origin"}};
}

HttpResponse App::protocol_error(int status, std::string_view message) {
  return error_response(ApiError(status, std::string(message)));
}

std::shared_ptr<void> App::take_slot() {
  if (slots_.fetch_add(1) >= options_.max_requests) {
    slots_.fetch_sub(1);
    return nullptr;
  }
  return {this, [](App* app) { app->slots_.fetch_sub(1); }};
}

template <typename F>
void App::answer(const HttpRequest& request, Exchange& exchange, F make) {
  const bool anthropic = is_anthropic(request);
  try {
    make();
  } catch (const ApiError& e) {
    exchange.respond(error_response(e, anthropic));
  } catch (const InputError& e) {
    exchange.respond(error_response(from_input_error(e.what(), "request"), anthropic));
  } catch (const std::exception& e) {
    log_warning(std::string("a request failed: ") + e.what());
    exchange.respond(error_response(ApiError(500, "the server failed"), anthropic));
  }
}

void App::handle(HttpRequest request, std::shared_ptr<Exchange> exchange) {
  const auto arrival = std::chrono::steady_clock::now();
  bool path_known = false;
  const Route* route = find_route(request, path_known);
  if (route->kind != Kind::kGenerate && request.body.empty()) {
    return answer(request, *exchange, [&] { exchange->respond((this->*route->answer)(request)); });
  }
  std::shared_ptr<void> slot;
  if (route->kind == Kind::kGenerate) {
    slot = take_slot();
    if (slot == nullptr) {
      metrics_.rejected.fetch_add(1);
      const ApiError full(429, "too many requests are waiting; come again later");
      return exchange->respond(error_response(full, is_anthropic(request)));
    }
  }
  // Large texts take long to tokenize: not on a thread of the connections.
  work_.push([this, route, r = std::make_shared<HttpRequest>(std::move(request)),
              x = std::move(exchange), s = std::move(slot), arrival] {
    answer(*r, *x, [&] {
      if (route->kind == Kind::kGenerate) {
        generate(*r, x, s, arrival);
      } else {
        x->respond((this->*route->answer)(*r));
      }
    });
  });
}

std::shared_ptr<Constraint> App::constraint_of(const Call& call) {
  try {
    return constraints_->get(call.answer);
  } catch (const InputError& e) {
    const std::string_view message = e.what();
    const bool of_tools = message.starts_with("tool");
    throw ApiError(400, (of_tools ? "" : call.answer_field + ": ") + std::string(message),
                   of_tools ? "tools" : call.answer_field);
  }
}

void App::generate(const HttpRequest& request, const std::shared_ptr<Exchange>& exchange,
                   std::shared_ptr<void> slot, std::chrono::steady_clock::time_point arrival) {
  std::unique_ptr<Reply> reply;
  Call call;
  if (request.path == "/v1/completions") {
    call = read_completion_call(request.body, model());
    reply = make_completion_reply(call, model());
  } else if (request.path == "/v1/messages") {
    call = read_messages_call(request.body, model());
    reply = make_messages_reply(call, model());
  } else if (request.path == "/v1/responses") {
    call = read_responses_call(request.body, model());
    reply = make_responses_reply(call, model());
  } else {
    call = read_chat_call(request.body, model());
    reply = make_chat_reply(call, model());
  }
  call.request.constraint = constraint_of(call);
  // What one key's holder asked must not show in another's response times.
  call.request.cache_salt = std::to_string(access_.key_of(request)) + ":" + call.request.cache_salt;
  std::make_shared<RunningCall>(*engine_, metrics_, model(), std::move(call), std::move(reply),
                                exchange, std::move(slot))
      ->start(arrival);
}

void App::log(const AccessRecord& r) {
  metrics_.count_http(r.status);
  if (!options_.access_log) return;
  std::array<char, 32> time{};
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(time.data(), time.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  // Only ASCII leaves: a client's bytes cannot pass for a line of their own.
  const Json line{{"time", time.data()},
                  {"id", r.id},
                  {"method", printable(r.method, 32)},
                  {"path", printable(r.path, 200)},
                  {"status", r.status},
                  {"ms", std::round(r.seconds * 1e5) / 1e2},
                  {"bytes_in", r.bytes_in},
                  {"bytes_out", r.bytes_out},
                  {"completed", r.completed}};
  const std::string text = line.dump(-1, ' ', true, Json::error_handler_t::replace) + "\n";
  const std::lock_guard lock(log_mutex_);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace tamis::server
