// An error that ends one request with a status and a message for its sender.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "server/http.h"

namespace tamis::server {

class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = {}, std::string code = {})
      : std::runtime_error(message),
        status_(status),
        param_(std::move(param)),
        code_(std::move(code)) {}

  int status() const { return status_; }
  const std::string& param() const { return param_; }  // the field that is wrong, if it is one
  const std::string& code() const { return code_; }
  // "invalid_request_error", "server_error", ... as OpenAI names it.
  std::string_view type() const;

 private:
  int status_;
  std::string param_, code_;
};

// 400 from "WHERE: field[2].name: want a string, got a number", as the parsers of text/ say it.
ApiError from_input_error(std::string_view message, std::string_view where);

// {"error": {"message", "type", "param", "code"}}, and Anthropic's {"type": "error", "error": ...}.
std::string openai_error(const ApiError& error);
std::string anthropic_error(const ApiError& error);

// With Retry-After where the client may come again.
HttpResponse error_response(const ApiError& error, bool anthropic = false);

}  // namespace tamis::server
