// The response of /v1/responses and its events: a list of items, each added, filled and done.
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "base/utf8.h"
#include "server/reply.h"

namespace tamis::server {
namespace {

using Kind = OutputEvent::Kind;

OrderedJson text_part(const char* type, const std::string& text) {
  OrderedJson part{{"type", type}, {"text", text}};
  if (part["type"] == "output_text") part["annotations"] = OrderedJson::array();
  return part;
}
OrderedJson reasoning_item(const std::string& id, const std::string& text) {
  OrderedJson content = OrderedJson::array();
  if (!text.empty()) content.push_back(text_part("reasoning_text", text));
  return {{"id", id},
          {"type", "reasoning"},
          {"summary", OrderedJson::array()},
          {"content", std::move(content)}};
}
OrderedJson message_item(const std::string& id, const char* status, OrderedJson content) {
  return {{"id", id},
          {"type", "message"},
          {"status", status},
          {"role", "assistant"},
          {"content", std::move(content)}};
}
OrderedJson call_item(const std::string& id, const ToolCall& call, const char* status) {
  return {{"id", id},           {"type", "function_call"}, {"status", status},
          {"call_id", call.id}, {"name", call.name},       {"arguments", call.arguments}};
}

class ResponsesReply final : public Reply {
 public:
  ResponsesReply(const Call& call, const ServedModel& model)
      : model_(model),
        id_(new_id("resp_")),
        created_(static_cast<int64_t>(std::time(nullptr))),
        logprobs_(call.generation.logprobs),
        repeated_(call.repeated) {}

  std::string whole(const CallSummary& s) override {
    const GenerationResult& r = *s.results.front();
    OrderedJson output = OrderedJson::array();
    if (!r.reasoning.empty()) output.push_back(reasoning_item(new_id("rs_"), r.reasoning));
    if (!r.content.empty()) {
      OrderedJson part = text_part("output_text", r.content);
      if (logprobs_) part["logprobs"] = logprobs_of(r.tokens);
      output.push_back(
          message_item(new_id("msg_"), status(r), OrderedJson::array({std::move(part)})));
    }
    for (const ToolCall& c : r.tool_calls) {
      output.push_back(call_item(new_id("fc_"), c, "completed"));
    }
    return dump(response(&s, std::move(output)));
  }

  std::string start(int, int64_t) override {
    std::string out;
    for (const char* type : {"response.created", "response.in_progress"}) {
      event(type, {{"response", response(nullptr, OrderedJson::array())}}, out);
    }
    return out;
  }

  std::string parts(int, std::span<const OutputEvent> parts,
                    std::span<const SampledToken> tokens) override {
    std::string out;
    if (logprobs_) unsent_.insert(unsent_.end(), tokens.begin(), tokens.end());
    for (const OutputEvent& part : parts) add(part, out);
    return out;
  }

  std::string choice_end(int, const GenerationResult& r,
                         std::span<const SampledToken> tokens) override {
    std::string out;
    if (logprobs_) unsent_.insert(unsent_.end(), tokens.begin(), tokens.end());
    close(status(r), out);
    return out;
  }

  std::string end(const CallSummary& s) override {
    std::string out;
    const bool whole = s.results.front()->finish != "length";
    event(whole ? "response.completed" : "response.incomplete",
          {{"response", response(&s, std::move(output_))}}, out);
    return out;
  }

  std::string error(const ApiError& e) override {
    std::string out;
    OrderedJson failed = response(nullptr, std::move(output_));
    failed["status"] = "failed";
    failed["error"] = {{"code", e.code().empty() ? "server_error" : e.code()},
                       {"message", e.what()}};
    event("response.failed", {{"response", std::move(failed)}}, out);
    return out;
  }

 private:
  static const char* status(const GenerationResult& r) {
    return r.finish == "length" ? "incomplete" : "completed";
  }

  OrderedJson response(const CallSummary* s, OrderedJson output) const {
    OrderedJson out{{"id", id_}, {"object", "response"}, {"created_at", created_}};
    out["status"] = s == nullptr ? "in_progress" : status(*s->results.front());
    out["error"] = nullptr;
    out["incomplete_details"] = nullptr;
    if (s != nullptr && s->results.front()->finish == "length") {
      out["incomplete_details"] = {{"reason", "max_output_tokens"}};
    }
    out["model"] = model_.name;
    out["output"] = std::move(output);
    out["previous_response_id"] = nullptr;
    out["store"] = false;
    out["truncation"] = "disabled";
    out.update(parse_ordered_json(repeated_, "request"));
    out["usage"] = s == nullptr ? OrderedJson() : usage(*s);
    if (s != nullptr) out["timings"] = timings_json(s->timings);
    return out;
  }

  static OrderedJson usage(const CallSummary& s) {
    return {{"input_tokens", s.prompt_tokens},
            {"input_tokens_details", {{"cached_tokens", s.cached_tokens}}},
            {"output_tokens", s.completion_tokens},
            {"output_tokens_details", {{"reasoning_tokens", s.reasoning_tokens}}},
            {"total_tokens", s.prompt_tokens + s.completion_tokens}};
  }

  void event(const std::string& type, OrderedJson members, std::string& out) {
    OrderedJson e{{"type", type}, {"sequence_number", sequence_++}};
    e.update(members);
    out += named_sse(e);
  }
  // Of the item that is being written; with content_index where it has parts.
  void item_event(const std::string& type, OrderedJson members, std::string& out) {
    OrderedJson m{{"item_id", item_}, {"output_index", output_.size()}};
    if (open_ != Kind::kToolStart) m["content_index"] = 0;
    m.update(members);
    event(type, std::move(m), out);
  }

  void add(const OutputEvent& part, std::string& out) {
    switch (part.kind) {
      case Kind::kReasoning:
        open(Kind::kReasoning, out);
        text_ += part.text;
        return item_event("response.reasoning_text.delta", {{"delta", part.text}}, out);
      case Kind::kContent:
      case Kind::kMalformed:
        open(Kind::kContent, out);
        text_ += part.text;
        return item_event("response.output_text.delta",
                          {{"delta", part.text}, {"logprobs", fresh_logprobs()}}, out);
      case Kind::kToolStart:
        close("completed", out);
        call_ = {new_id("call_"), part.text, ""};
        return open(Kind::kToolStart, out);
      case Kind::kToolArguments:
        if (open_ != Kind::kToolStart) return;
        call_.arguments += part.text;
        return item_event("response.function_call_arguments.delta", {{"delta", part.text}}, out);
      case Kind::kToolEnd:
        return close("completed", out);
      case Kind::kToolBroken:
        return close("incomplete", out);
    }
  }

  void open(Kind kind, std::string& out) {
    if (open_ == kind) return;
    close("completed", out);
    open_ = kind;
    text_.clear();
    OrderedJson item;
    if (kind == Kind::kReasoning) {
      item = reasoning_item(item_ = new_id("rs_"), "");
    } else if (kind == Kind::kContent) {
      item = message_item(item_ = new_id("msg_"), "in_progress", OrderedJson::array());
    } else {
      item = call_item(item_ = new_id("fc_"), call_, "in_progress");
    }
    event("response.output_item.added",
          {{"output_index", output_.size()}, {"item", std::move(item)}}, out);
    if (kind == Kind::kToolStart) return;
    const char* type = kind == Kind::kReasoning ? "reasoning_text" : "output_text";
    item_event("response.content_part.added", {{"part", text_part(type, "")}}, out);
  }

  void close(const char* status, std::string& out) {
    if (!open_) return;
    OrderedJson item;
    if (open_ == Kind::kToolStart) {
      item_event("response.function_call_arguments.done",
                 {{"name", call_.name}, {"arguments", call_.arguments}}, out);
      item = call_item(item_, call_, status);
    } else {
      const bool thought = open_ == Kind::kReasoning;
      OrderedJson part = text_part(thought ? "reasoning_text" : "output_text", text_);
      OrderedJson done{{"text", text_}};
      if (!thought)
        done["logprobs"] = part["logprobs"] = std::exchange(sent_, OrderedJson::array());
      item_event(thought ? "response.reasoning_text.done" : "response.output_text.done",
                 std::move(done), out);
      item_event("response.content_part.done", {{"part", part}}, out);
      item = thought ? reasoning_item(item_, text_)
                     : message_item(item_, status, OrderedJson::array({std::move(part)}));
    }
    event("response.output_item.done", {{"output_index", output_.size()}, {"item", item}}, out);
    output_.push_back(std::move(item));
    open_.reset();
  }

  OrderedJson fresh_logprobs() {
    OrderedJson fresh = logprobs_of(std::exchange(unsent_, {}));
    for (const OrderedJson& entry : fresh) sent_.push_back(entry);
    return fresh;
  }
  OrderedJson token_json(int32_t id, float logprob) const {
    const std::string bytes = model_.tokenizer.token_bytes(id);
    OrderedJson list = OrderedJson::array();
    for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
    return {{"token", utf8_lossy(bytes)}, {"bytes", list}, {"logprob", json_logprob(logprob)}};
  }
  OrderedJson logprobs_of(const std::vector<SampledToken>& tokens) const {
    OrderedJson out = OrderedJson::array();
    for (const SampledToken& t : tokens) {
      OrderedJson entry = token_json(t.id, t.logprob);
      OrderedJson top = OrderedJson::array();
      for (const TokenLogprob& o : t.top) top.push_back(token_json(o.id, o.logprob));
      entry["top_logprobs"] = std::move(top);
      out.push_back(std::move(entry));
    }
    return out;
  }

  const ServedModel& model_;
  std::string id_;
  int64_t created_;
  bool logprobs_;
  std::string repeated_;
  int64_t sequence_ = 0;
  OrderedJson output_ = OrderedJson::array(), sent_ = OrderedJson::array();
  std::vector<SampledToken> unsent_;
  // The item that is being written.
  std::optional<Kind> open_;
  std::string item_, text_;
  ToolCall call_;
};

}  // namespace

std::unique_ptr<Reply> make_responses_reply(const Call& call, const ServedModel& model) {
  return std::make_unique<ResponsesReply>(call, model);
}

}  // namespace tamis::server
