// Anthropic's message and its events.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "server/reply.h"

namespace tamis::server {
namespace {

using Kind = OutputEvent::Kind;

std::string stop_reason(const GenerationResult& r) {
  if (r.finish == "length") return "max_tokens";
  if (r.finish == "tool_calls") return "tool_use";
  return r.stop_string.empty() ? "end_turn" : "stop_sequence";
}

OrderedJson stop_sequence(const GenerationResult& r) {
  return r.finish == "stop" && !r.stop_string.empty() ? OrderedJson(r.stop_string) : OrderedJson();
}

// A call that max_tokens has cut is no JSON; what came of it is not shown as if it were whole.
OrderedJson input_of(const ToolCall& call) {
  try {
    OrderedJson input = parse_ordered_json(call.arguments, "arguments");
    if (input.is_object()) return input;
  } catch (const InputError&) {
  }
  return OrderedJson::object();
}

class MessagesReply final : public Reply {
 public:
  explicit MessagesReply(const ServedModel& model) : model_(model), id_(new_id("msg_")) {}

  std::string whole(const CallSummary& s) override {
    const GenerationResult& r = *s.results.front();
    OrderedJson content = OrderedJson::array();
    if (!r.reasoning.empty()) {
      content.push_back({{"type", "thinking"}, {"thinking", r.reasoning}, {"signature", ""}});
    }
    if (!r.content.empty()) content.push_back({{"type", "text"}, {"text", r.content}});
    for (const ToolCall& c : r.tool_calls) {
      content.push_back(
          {{"type", "tool_use"}, {"id", c.id}, {"name", c.name}, {"input", input_of(c)}});
    }
    OrderedJson out = message(std::move(content));
    out["stop_reason"] = stop_reason(r);
    out["stop_sequence"] = stop_sequence(r);
    out["usage"] = usage(s);
    return dump(out);
  }

  std::string start(int, int64_t prompt_tokens) override {
    OrderedJson m = message(OrderedJson::array());
    m["usage"] = {{"input_tokens", prompt_tokens},
                  {"cache_creation_input_tokens", 0},
                  {"cache_read_input_tokens", 0},
                  {"output_tokens", 0}};
    return named_sse({{"type", "message_start"}, {"message", std::move(m)}});
  }

  std::string parts(int, std::span<const OutputEvent> parts,
                    std::span<const SampledToken>) override {
    std::string out;
    for (const OutputEvent& part : parts) add(part, out);
    return out;
  }

  std::string choice_end(int, const GenerationResult&, std::span<const SampledToken>) override {
    std::string out;
    close(out);
    return out;
  }

  std::string end(const CallSummary& s) override {
    const GenerationResult& r = *s.results.front();
    return named_sse(
               {{"type", "message_delta"},
                {"delta", {{"stop_reason", stop_reason(r)}, {"stop_sequence", stop_sequence(r)}}},
                {"usage", usage(s)}}) +
           named_sse({{"type", "message_stop"}});
  }

  std::string error(const ApiError& e) override {
    return "event: error\ndata: " + anthropic_error(e) + "\n\n";
  }
  std::string ping() const override { return named_sse({{"type", "ping"}}); }
  bool anthropic() const override { return true; }

 private:
  OrderedJson message(OrderedJson content) const {
    return {{"id", id_},
            {"type", "message"},
            {"role", "assistant"},
            {"model", model_.name},
            {"content", std::move(content)},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }

  // What came from the cache is not counted as input a second time.
  static OrderedJson usage(const CallSummary& s) {
    return {{"input_tokens", s.prompt_tokens - s.cached_tokens},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", s.cached_tokens},
            {"output_tokens", s.completion_tokens}};
  }

  void add(const OutputEvent& part, std::string& out) {
    switch (part.kind) {
      case Kind::kReasoning:
        open("thinking", {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}}, out);
        return delta({{"type", "thinking_delta"}, {"thinking", part.text}}, out);
      case Kind::kContent:
      case Kind::kMalformed:
        open("text", {{"type", "text"}, {"text", ""}}, out);
        return delta({{"type", "text_delta"}, {"text", part.text}}, out);
      case Kind::kToolStart:
        close(out);
        return open("tool_use",
                    {{"type", "tool_use"},
                     {"id", new_id("call_")},
                     {"name", part.text},
                     {"input", OrderedJson::object()}},
                    out);
      case Kind::kToolArguments:
        return delta({{"type", "input_json_delta"}, {"partial_json", part.text}}, out);
      case Kind::kToolEnd:
      case Kind::kToolBroken:
        return close(out);
    }
  }

  // Goes on with the open block if it is of that type.
  void open(std::string_view type, OrderedJson block, std::string& out) {
    if (open_ == type) return;
    close(out);
    open_ = type;
    out += named_sse(
        {{"type", "content_block_start"}, {"index", index_}, {"content_block", std::move(block)}});
  }
  void delta(OrderedJson what, std::string& out) const {
    if (open_.empty()) return;
    out +=
        named_sse({{"type", "content_block_delta"}, {"index", index_}, {"delta", std::move(what)}});
  }
  void close(std::string& out) {
    if (open_.empty()) return;
    out += named_sse({{"type", "content_block_stop"}, {"index", index_++}});
    open_ = {};
  }

  const ServedModel& model_;
  std::string id_;
  std::string_view open_;  // type of the block that is being written
  int64_t index_ = 0;
};

}  // namespace

std::unique_ptr<Reply> make_messages_reply(const Call&, const ServedModel& model) {
  return std::make_unique<MessagesReply>(model);
}

}  // namespace tamis::server
