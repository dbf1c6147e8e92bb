#include "server/generation.h"

#include <atomic>
#include <random>

namespace tamis::server {

using Kind = OutputEvent::Kind;

Generation::Generation(const Tokenizer& tokenizer, GenerationOptions options)
    : options_(std::move(options)), text_(tokenizer, options_.stop) {
  if (options_.format) {
    parser_.emplace(OutputParserOptions{*options_.format, options_.in_thinking, options_.tools});
  }
}

void Generation::push(const TokenEvent& event, std::vector<OutputEvent>& parts) {
  if (event.finish != FinishReason::kNone) engine_done_ = true;
  if (finished()) return;
  const size_t first = parts.size();
  if (event.token.id >= 0) {
    ++result_.token_count;
    const bool ends_text = event.finish == FinishReason::kStop;
    if ((options_.logprobs || options_.reads) && !ends_text) result_.tokens.push_back(event.token);
    // The token that ends a text is not part of it.
    if (!ends_text) add(text_.push(event.token.id), parts);
  }
  if (options_.in_thinking && result_.content.empty() && result_.tool_calls.empty() &&
      (parts.size() == first || parts.back().kind == Kind::kReasoning)) {
    ++result_.reasoning_tokens;
  }
  if (finished()) return;
  if (text_.stopped() || event.finish == FinishReason::kStop) {
    result_.stop_string = text_.stop_string();
    end("stop", parts);
  } else if (event.finish == FinishReason::kLength) {
    end("length", parts);
  }
}

void Generation::add(std::string_view text, std::vector<OutputEvent>& parts) {
  std::vector<OutputEvent> fresh;
  if (parser_) {
    parser_->push(text, fresh);
  } else {
    append_event(fresh, Kind::kContent, text);
  }
  for (OutputEvent& part : fresh) {
    if (part.text.empty() && part.kind != Kind::kToolEnd) continue;
    keep(part);
    parts.push_back(std::move(part));
    if (options_.one_call && parts.back().kind == Kind::kToolEnd) {
      result_.finish = "tool_calls";
      return;
    }
  }
}

// The answer as a whole, for who does not stream.
void Generation::keep(const OutputEvent& part) {
  switch (part.kind) {
    case Kind::kReasoning:
      result_.reasoning += part.text;
      break;
    case Kind::kContent:
    case Kind::kMalformed:
      result_.content += part.text;
      break;
    case Kind::kToolStart:
      result_.tool_calls.push_back({new_id("call_"), part.text, ""});
      call_open_ = true;
      break;
    case Kind::kToolArguments:
      if (call_open_) result_.tool_calls.back().arguments += part.text;
      break;
    case Kind::kToolEnd:
      call_open_ = false;
      break;
    case Kind::kToolBroken:
      break;
  }
}

void Generation::end(std::string_view reason, std::vector<OutputEvent>& parts) {
  add(text_.finish(), parts);
  if (finished()) return;
  if (parser_) {
    std::vector<OutputEvent> rest;
    parser_->finish(rest, /*cut=*/reason == "length");
    for (OutputEvent& part : rest) {
      keep(part);
      parts.push_back(std::move(part));
    }
  }
  const bool calls = !result_.tool_calls.empty() && !call_open_;
  result_.finish = calls && reason == "stop" ? "tool_calls" : reason;
}

std::string new_id(std::string_view prefix) {
  static std::atomic<uint64_t> counter{(uint64_t{std::random_device{}()} << 32) |
                                       std::random_device{}()};
  static constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  uint64_t x = counter.fetch_add(0x9E3779B97F4A7C15ULL);
  std::string out(prefix);
  for (int round = 0; round < 2; ++round) {
    uint64_t y = (x ^ (x >> 31)) * 0xBF58476D1CE4E5B9ULL;
    y ^= y >> 29;
    for (int i = 0; i < 12; ++i, y /= 36) out += kDigits[y % 36];
    x = x * 0x94D049BB133111EBULL + 1;
  }
  return out;
}

}  // namespace tamis::server
