#include "server/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace tamis::server {
namespace {

void head(std::string& out, std::string_view name, std::string_view help, std::string_view type) {
  out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

template <typename T>
void counter(std::string& out, std::string_view name, std::string_view help, const T& value) {
  head(out, name, help, "counter");
  out += fmt::format("{} {}\n", name, +value);
}

template <typename T>
void gauge(std::string& out, std::string_view name, std::string_view help, T value) {
  head(out, name, help, "gauge");
  out += fmt::format("{} {}\n", name, value);
}

void render_speculation(std::string& out, const SpeculationStats& s) {
  counter(out, "vllm:spec_decode_num_drafts_total", "Rows of guesses that were checked", s.drafts);
  counter(out, "vllm:spec_decode_num_draft_tokens_total", "Tokens guessed ahead", s.tokens);
  counter(out, "vllm:spec_decode_num_accepted_tokens_total", "Guessed tokens that held",
          s.accepted);
  const char* name = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
  head(out, name, "Guessed tokens that held, by their place", "counter");
  for (size_t i = 0; i < s.at.size(); ++i) {
    if (i > 0 && s.at[i] == 0) continue;
    out += fmt::format("{}{{position=\"{}\"}} {}\n", name, i, s.at[i]);
  }
}

void render_engine(std::string& out, const EngineGauges& g) {
  gauge(out, "vllm:num_requests_running", "Requests in the batch", g.running);
  gauge(out, "vllm:num_requests_waiting", "Requests waiting for a place", g.waiting);
  gauge(out, "llamacpp:requests_processing", "Requests in the batch", g.running);
  gauge(out, "llamacpp:requests_deferred", "Requests waiting for a place", g.waiting);
  const double share = g.pages_total > 0
                           ? static_cast<double>(g.pages_used) / static_cast<double>(g.pages_total)
                           : 0;
  gauge(out, "vllm:kv_cache_usage_perc", "Share of the cache in use, 0 to 1", share);
  gauge(out, "kv_blocks_total", "Pages of the cache", g.pages_total);
  gauge(out, "kv_blocks_used", "Pages that running requests hold", g.pages_used);
  gauge(out, "kv_blocks_cached", "Pages kept for later requests", g.pages_cached);
  gauge(out, "kv_blocks_free", "Pages that hold nothing", g.pages_free);
  counter(out, "vllm:prefix_cache_queries", "Prompt tokens looked up", g.prefix_queries);
  counter(out, "vllm:prefix_cache_hits", "Prompt tokens found", g.prefix_hits);
  counter(out, "vllm:num_preemptions_total", "Requests put back to make room", g.preemptions);
  render_speculation(out, g.speculation);
  counter(out, "tamis:engine_steps_total", "Forward passes", g.steps);
  counter(out, "tamis:engine_busy_seconds_total", "Time of the engine's thread with work at hand",
          g.busy_seconds);
  counter(out, "tamis:engine_model_seconds_total", "Of that, in forward passes", g.model_seconds);
  counter(out, "tamis:timed_pass_seconds_total",
          "Forward passes that were timed in parts, one in 64", g.timed_seconds);
  counter(out, "tamis:indexer_seconds_total", "Of these, in the indexer's scores and top-k",
          g.indexer_seconds);
  gauge(out, "tamis:engine_step_seconds", "Time of the last forward pass", g.step_seconds);
}

void render_selection(std::string& out, const SelectionStats& s) {
  int64_t sampled = 0;
  for (const SelectionStats::Layer& l : s.layers) sampled = std::max(sampled, l.tokens);
  counter(out, "tamis:recall_sampled_tokens_total", "Tokens whose selection was measured", sampled);
  if (sampled == 0) return;
  head(out, "tamis:attention_kept_mass", "Part of dense attention that the selection holds, mean",
       "gauge");
  for (size_t l = 0; l < s.layers.size(); ++l) {
    const double mean = s.layers[l].kept / static_cast<double>(s.layers[l].tokens);
    out += fmt::format("tamis:attention_kept_mass{{layer=\"{}\"}} {}\n", l, mean);
  }
  const char* name = "tamis:selection_lookback_tokens";
  head(out, name, "Distance from a token to the positions it reads", "histogram");
  int64_t total = 0;
  for (size_t i = 0; i < s.distance.size(); ++i) {
    total += s.distance[i];
    const bool last = i + 1 == s.distance.size();
    const std::string bound = last ? "+Inf" : std::to_string(1 << i);
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, bound, total);
  }
  out += fmt::format("{}_sum {}\n{}_count {}\n", name, s.distance_sum, name, total);
}

}  // namespace

void Histogram::add(double seconds) {
  size_t i = 0;
  while (i < kBounds.size() && seconds > kBounds[i]) ++i;
  const std::lock_guard lock(mutex_);
  ++counts_[i];
  sum_ += seconds;
}

void Histogram::render(std::string& out, std::string_view name, std::string_view help) const {
  head(out, name, help, "histogram");
  const std::lock_guard lock(mutex_);
  int64_t total = 0;
  for (size_t i = 0; i < kBounds.size(); ++i) {
    total += counts_[i];
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBounds[i], total);
  }
  total += counts_.back();
  out += fmt::format("{}_bucket{{le=\"+Inf\"}} {}\n", name, total);
  out += fmt::format("{}_sum {}\n{}_count {}\n", name, sum_, name, total);
}

void Metrics::count_finished(std::string_view reason) {
  const std::lock_guard lock(mutex_);
  ++finished_[std::string(reason)];
}

void Metrics::count_http(int status) {
  const std::lock_guard lock(mutex_);
  ++http_[status];
}

std::string Metrics::render(const EngineGauges& g, std::string_view version) const {
  std::string out;
  head(out, "tamis_build_info", "The version of the program", "gauge");
  out += fmt::format("tamis_build_info{{version=\"{}\"}} 1\n", version);
  render_engine(out, g);
  counter(out, "vllm:prompt_tokens_total", "Prompt tokens of accepted requests", prompt_tokens);
  counter(out, "vllm:generation_tokens_total", "Tokens written", generation_tokens);
  counter(out, "llamacpp:prompt_tokens_total", "Prompt tokens of accepted requests", prompt_tokens);
  counter(out, "llamacpp:tokens_predicted_total", "Tokens written", generation_tokens);
  counter(out, "tamis:requests_cancelled_total", "Requests whose client went", cancelled);
  counter(out, "tamis:requests_failed_total", "Requests ended by an error", failed);
  counter(out, "tamis:requests_rejected_total", "Requests refused for want of room", rejected);
  render_selection(out, g.selection);
  time_to_first_token.render(out, "vllm:time_to_first_token_seconds", "Arrival to first token");
  inter_token.render(out, "vllm:inter_token_latency_seconds", "Between two tokens of a request");
  end_to_end.render(out, "vllm:e2e_request_latency_seconds", "Arrival to last token");
  queue_time.render(out, "vllm:request_queue_time_seconds", "Arrival to the first pass");
  prefill_time.render(out, "vllm:request_prefill_time_seconds", "First pass to first token");
  decode_time.render(out, "vllm:request_decode_time_seconds", "First to last token");
  const std::lock_guard lock(mutex_);
  head(out, "vllm:request_success_total", "Finished requests", "counter");
  for (const auto& [reason, n] : finished_) {
    out += fmt::format("vllm:request_success_total{{finished_reason=\"{}\"}} {}\n", reason, n);
  }
  head(out, "tamis:http_requests_total", "Answers by status", "counter");
  for (const auto& [status, n] : http_) {
    out += fmt::format("tamis:http_requests_total{{status=\"{}\"}} {}\n", status, n);
  }
  return out;
}

}  // namespace tamis::server
