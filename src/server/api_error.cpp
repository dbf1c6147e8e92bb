#include "server/api_error.h"

#include <nlohmann/json.hpp>

#include "base/json.h"

namespace tamis::server {
namespace {

std::string_view anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

bool is_field_path(std::string_view text) {
  if (text.empty() || text.size() > 200) return false;
  for (const char c : text) {
    const bool ok = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                    c == '_' || c == '.' || c == '[' || c == ']';
    if (!ok) return false;
  }
  return true;
}

}  // namespace

std::string_view ApiError::type() const {
  switch (status_) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status_ < 500 ? "invalid_request_error" : "server_error";
  }
}

ApiError from_input_error(std::string_view message, std::string_view where) {
  const std::string prefix = std::string(where) + ": ";
  if (message.starts_with(prefix)) message.remove_prefix(prefix.size());
  const std::string_view field = message.substr(0, message.find(": "));
  const bool named = field.size() < message.size() && is_field_path(field);
  return {400, std::string(message), named ? std::string(field) : ""};
}

std::string openai_error(const ApiError& error) {
  const auto text_or_null = [](const std::string& s) { return s.empty() ? Json() : Json(s); };
  const Json body{{"error",
                   {{"message", error.what()},
                    {"type", error.type()},
                    {"param", text_or_null(error.param())},
                    {"code", text_or_null(error.code())}}}};
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string anthropic_error(const ApiError& error) {
  const Json body{{"type", "error"},
                  {"error", {{"type", anthropic_type(error.status())}, {"message", error.what()}}}};
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

HttpResponse error_response(const ApiError& error, bool anthropic) {
  HttpResponse response;
  response.status = error.status();
  response.body = anthropic ? anthropic_error(error) : openai_error(error);
  if (error.status() == 429 || error.status() == 503) {
    response.headers.push_back({"Retry-After", "1"});
  }
  if (error.status() == 401) {
    response.headers.push_back({"WWW-Authenticate", "Basic realm=\"tamis\", charset=\"UTF-8\""});
  }
  return response;
}

}  // namespace tamis::server
