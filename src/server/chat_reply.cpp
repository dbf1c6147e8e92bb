// chat.completion and chat.completion.chunk of /v1/chat/completions.
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "server/reply.h"

namespace tamis::server {
namespace {

using Kind = OutputEvent::Kind;

class ChatReply final : public Reply {
 public:
  ChatReply(const Call& call, const ServedModel& model)
      : model_(model),
        id_(new_id("chatcmpl-")),
        created_(static_cast<int64_t>(std::time(nullptr))),
        logprobs_(call.generation.logprobs),
        reads_(call.generation.reads),
        usage_(call.include_usage),
        calls_(static_cast<size_t>(call.answers())) {}

  std::string whole(const CallSummary& s) override {
    OrderedJson choices = OrderedJson::array();
    for (size_t i = 0; i < s.results.size(); ++i) choices.push_back(choice(i, *s.results[i]));
    return dump({{"id", id_},
                 {"object", "chat.completion"},
                 {"created", created_},
                 {"model", model_.name},
                 {"choices", std::move(choices)},
                 {"usage", usage_json(s)},
                 {"timings", timings_json(s.timings)}});
  }

  std::string start(int choices, int64_t) override {
    std::string out;
    for (int i = 0; i < choices; ++i) {
      out += sse(chunk(i, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
    }
    return out;
  }

  std::string parts(int index, std::span<const OutputEvent> parts,
                    std::span<const SampledToken> tokens) override {
    std::string out;
    OrderedJson logprobs = logprobs_ ? logprobs_of(tokens) : OrderedJson();
    for (const OutputEvent& part : parts) {
      OrderedJson delta = delta_of(index, part);
      if (delta.empty()) continue;
      OrderedJson event = chunk(index, std::move(delta), std::exchange(logprobs, nullptr), nullptr);
      add_selection(event, std::exchange(tokens, {}));
      out += sse(event);
    }
    return out;
  }

  std::string choice_end(int index, const GenerationResult& result,
                         std::span<const SampledToken> tokens) override {
    const bool some = logprobs_ && !tokens.empty();
    OrderedJson event =
        chunk(index, OrderedJson::object(), some ? logprobs_of(tokens) : OrderedJson(),
              std::string(result.finish));
    add_selection(event, tokens);
    return sse(event);
  }

  std::string end(const CallSummary& s) override {
    std::string out;
    if (usage_) {
      OrderedJson last = base();
      last["choices"] = OrderedJson::array();
      last["usage"] = usage_json(s);
      last["timings"] = timings_json(s.timings);
      out += sse(last);
    }
    return out + "data: [DONE]\n\n";
  }

  std::string progress(const PromptProgress& p) override {
    OrderedJson event = chunk(0, OrderedJson::object(), nullptr, nullptr);
    event["prompt_progress"] = {{"total", p.total},
                                {"cache", p.cached},
                                {"processed", p.processed},
                                {"time_ms", p.seconds * 1e3}};
    return sse(event);
  }

 private:
  OrderedJson base() const {
    return {{"id", id_},
            {"object", "chat.completion.chunk"},
            {"created", created_},
            {"model", model_.name}};
  }

  OrderedJson chunk(int index, OrderedJson delta, OrderedJson logprobs, OrderedJson finish) const {
    OrderedJson out = base();
    out["choices"] = OrderedJson::array({{{"index", index},
                                          {"delta", std::move(delta)},
                                          {"logprobs", std::move(logprobs)},
                                          {"finish_reason", std::move(finish)}}});
    if (usage_) out["usage"] = nullptr;
    return out;
  }

  void add_selection(OrderedJson& event, std::span<const SampledToken> tokens) const {
    if (reads_ && !tokens.empty()) event["choices"][0]["selection"] = selection_json(tokens);
  }

  OrderedJson delta_of(int index, const OutputEvent& part) {
    int64_t& calls = calls_[static_cast<size_t>(index)];
    switch (part.kind) {
      case Kind::kReasoning:
        // Clients disagree on the name; those that know one ignore the other.
        return {{"reasoning_content", part.text}, {"reasoning", part.text}};
      case Kind::kContent:
      case Kind::kMalformed:
        return {{"content", part.text}};
      case Kind::kToolStart:
        return {{"tool_calls",
                 OrderedJson::array({{{"index", calls++},
                                      {"id", new_id("call_")},
                                      {"type", "function"},
                                      {"function", {{"name", part.text}, {"arguments", ""}}}}})}};
      case Kind::kToolArguments:
        return {{"tool_calls", OrderedJson::array({{{"index", calls - 1},
                                                    {"function", {{"arguments", part.text}}}}})}};
      default:
        return OrderedJson::object();
    }
  }

  OrderedJson choice(size_t index, const GenerationResult& r) const {
    OrderedJson message{{"role", "assistant"}, {"content", r.content}, {"refusal", nullptr}};
    if (!r.reasoning.empty()) {
      message["reasoning_content"] = r.reasoning;
      message["reasoning"] = r.reasoning;
    }
    if (!r.tool_calls.empty()) {
      if (r.content.empty()) message["content"] = nullptr;
      OrderedJson calls = OrderedJson::array();
      for (const ToolCall& c : r.tool_calls) {
        calls.push_back({{"id", c.id},
                         {"type", "function"},
                         {"function", {{"name", c.name}, {"arguments", c.arguments}}}});
      }
      message["tool_calls"] = std::move(calls);
    }
    OrderedJson out{{"index", index},
                    {"message", std::move(message)},
                    {"logprobs", logprobs_ ? logprobs_of(r.tokens) : OrderedJson()},
                    {"finish_reason", std::string(r.finish)}};
    if (reads_) out["selection"] = selection_json(r.tokens);
    return out;
  }

  OrderedJson token_json(int32_t id, float logprob) const {
    const std::string bytes = model_.tokenizer.token_bytes(id);
    OrderedJson list = OrderedJson::array();
    for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
    return {{"token", utf8_lossy(bytes)}, {"logprob", json_logprob(logprob)}, {"bytes", list}};
  }

  OrderedJson logprobs_of(std::span<const SampledToken> tokens) const {
    OrderedJson content = OrderedJson::array();
    for (const SampledToken& t : tokens) {
      OrderedJson entry = token_json(t.id, t.logprob);
      OrderedJson top = OrderedJson::array();
      for (const TokenLogprob& other : t.top) top.push_back(token_json(other.id, other.logprob));
      entry["top_logprobs"] = std::move(top);
      content.push_back(std::move(entry));
    }
    return {{"content", std::move(content)}, {"refusal", nullptr}};
  }

  const ServedModel& model_;
  std::string id_;
  int64_t created_;
  bool logprobs_, reads_, usage_;
  std::vector<int64_t> calls_;  // tool calls begun, by choice
};

}  // namespace

std::unique_ptr<Reply> make_chat_reply(const Call& call, const ServedModel& model) {
  return std::make_unique<ChatReply>(call, model);
}

}  // namespace tamis::server
