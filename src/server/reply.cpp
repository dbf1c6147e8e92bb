#include "server/reply.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace tamis::server {

std::string Reply::progress(const PromptProgress&) { return {}; }

std::string Reply::error(const ApiError& e) { return "data: " + openai_error(e) + "\n\n"; }

std::string dump(const OrderedJson& value) {
  return value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

std::string sse(const OrderedJson& value) { return "data: " + dump(value) + "\n\n"; }

std::string named_sse(const OrderedJson& value) {
  return "event: " + value.at("type").get<std::string>() + "\n" + sse(value);
}

double json_logprob(float logprob) {
  // NaN compares false, and becomes the bound too.
  return logprob > -9999.0F ? static_cast<double>(std::min(logprob, 0.0F)) : -9999.0;
}

namespace {

// Three digits tell what was read; more would make the answer large.
OrderedJson shares_json(const std::vector<float>& shares) {
  OrderedJson out = OrderedJson::array();
  for (const float s : shares) out.push_back(std::round(s * 1000.0) / 1000.0);
  return out;
}

}  // namespace

OrderedJson selection_json(std::span<const SampledToken> tokens) {
  OrderedJson out = OrderedJson::array();
  for (const SampledToken& t : tokens) {
    OrderedJson read = OrderedJson::array();
    for (const ReadPosition& r : t.reads.top) {
      read.push_back({{"position", r.position},
                      {"layers", shares_json(r.share)},
                      {"dense", shares_json(r.dense)}});
    }
    out.push_back({{"position", t.reads.position + 1},
                   {"kept", shares_json(t.reads.kept)},
                   {"read", std::move(read)}});
  }
  return out;
}

OrderedJson usage_json(const CallSummary& s) {
  return {{"prompt_tokens", s.prompt_tokens},
          {"completion_tokens", s.completion_tokens},
          {"total_tokens", s.prompt_tokens + s.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", s.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", s.reasoning_tokens}}},
          {"prompt_cache_hit_tokens", s.cached_tokens},
          {"prompt_cache_miss_tokens", s.prompt_tokens - s.cached_tokens}};
}

OrderedJson timings_json(const Timings& t) {
  const auto rate = [](int64_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0;
  };
  const int64_t read = t.prompt_tokens - t.cached_tokens;
  const int64_t decoded = std::max<int64_t>(t.predicted_tokens - 1, 0);
  return {{"queue_ms", t.queue_s * 1e3},
          {"prompt_n", read},
          {"cache_n", t.cached_tokens},
          {"prompt_ms", t.prompt_s * 1e3},
          {"prompt_per_second", rate(read, t.prompt_s)},
          {"predicted_n", t.predicted_tokens},
          {"predicted_ms", t.predict_s * 1e3},
          {"predicted_per_second", rate(decoded, t.predict_s)}};
}

}  // namespace tamis::server
