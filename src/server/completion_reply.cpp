// text_completion of /v1/completions.
#include <fmt/format.h>

#include <ctime>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "server/reply.h"

namespace tamis::server {
namespace {

class CompletionReply final : public Reply {
 public:
  CompletionReply(const Call& call, const ServedModel& model)
      : model_(model),
        id_(new_id("cmpl-")),
        created_(static_cast<int64_t>(std::time(nullptr))),
        logprobs_(call.generation.logprobs),
        reads_(call.generation.reads),
        echo_(call.echo),
        usage_(call.include_usage),
        top_(call.request.sampling.top_logprobs),
        offsets_(static_cast<size_t>(call.answers())) {
    if (!echo_) return;
    for (const auto& prompt : call.prompts) {
      for (int64_t i = 0; i < call.n; ++i) {
        prompts_.push_back(model_.tokenizer.decode(prompt, /*skip_special=*/true));
      }
    }
  }

  std::string whole(const CallSummary& s) override {
    OrderedJson choices = OrderedJson::array();
    for (size_t i = 0; i < s.results.size(); ++i) {
      const GenerationResult& r = *s.results[i];
      OrderedJson logprobs;
      if (logprobs_) {
        std::vector<SampledToken> all;
        if (!s.scores[i].empty() || echo_) {
          all.push_back({s.prompts[i]->front(), 0, {}});
          all.insert(all.end(), s.scores[i].begin(), s.scores[i].end());
        }
        all.insert(all.end(), r.tokens.begin(), r.tokens.end());
        logprobs = logprobs_of(i, all, echo_);
      }
      choices.push_back({{"index", i},
                         {"text", (echo_ ? prompts_[i] : "") + r.content},
                         {"logprobs", std::move(logprobs)},
                         {"finish_reason", std::string(r.finish)}});
      if (reads_) choices.back()["selection"] = selection_json(r.tokens);
    }
    OrderedJson out = base(std::move(choices));
    out["usage"] = usage_json(s);
    out["timings"] = timings_json(s.timings);
    return dump(out);
  }

  std::string start(int choices, int64_t) override {
    std::string out;
    for (int i = 0; echo_ && i < choices; ++i) {
      out += sse(chunk(i, prompts_[static_cast<size_t>(i)], nullptr, nullptr));
    }
    return out;
  }

  std::string parts(int choice, std::span<const OutputEvent> parts,
                    std::span<const SampledToken> tokens) override {
    std::string text;
    for (const OutputEvent& part : parts) text += part.text;
    if (text.empty()) return {};
    const auto i = static_cast<size_t>(choice);
    OrderedJson event =
        chunk(choice, text, logprobs_ ? logprobs_of(i, tokens, false) : OrderedJson(), nullptr);
    if (reads_) event["choices"][0]["selection"] = selection_json(tokens);
    return sse(event);
  }

  std::string choice_end(int choice, const GenerationResult& result,
                         std::span<const SampledToken> tokens) override {
    const auto i = static_cast<size_t>(choice);
    const bool some = logprobs_ && !tokens.empty();
    OrderedJson event = chunk(choice, "", some ? logprobs_of(i, tokens, false) : OrderedJson(),
                              std::string(result.finish));
    if (reads_ && !tokens.empty()) event["choices"][0]["selection"] = selection_json(tokens);
    return sse(event);
  }

  std::string end(const CallSummary& s) override {
    std::string out;
    if (usage_) {
      OrderedJson last = base(OrderedJson::array());
      last["usage"] = usage_json(s);
      last["timings"] = timings_json(s.timings);
      out += sse(last);
    }
    return out + "data: [DONE]\n\n";
  }

 private:
  OrderedJson base(OrderedJson choices) const {
    return {{"id", id_},
            {"object", "text_completion"},
            {"created", created_},
            {"model", model_.name},
            {"choices", std::move(choices)}};
  }

  OrderedJson chunk(int index, const std::string& text, OrderedJson logprobs,
                    OrderedJson finish) const {
    OrderedJson out = base(OrderedJson::array({{{"index", index},
                                                {"text", text},
                                                {"logprobs", std::move(logprobs)},
                                                {"finish_reason", std::move(finish)}}}));
    if (usage_) out["usage"] = nullptr;
    return out;
  }

  // A token that is no whole character is written as its bytes, so that different ones differ.
  std::string token_text(int32_t id) const {
    const std::string bytes = model_.tokenizer.token_bytes(id);
    if (utf8_first_invalid(bytes) == std::string::npos) return bytes;
    std::string out = "bytes:";
    for (const char c : bytes) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    return out;
  }

  OrderedJson logprobs_of(size_t choice, std::span<const SampledToken> tokens, bool first_unknown) {
    OrderedJson texts = OrderedJson::array(), values = OrderedJson::array(),
                tops = OrderedJson::array(), offsets = OrderedJson::array();
    for (const SampledToken& t : tokens) {
      const std::string text = token_text(t.id);
      const bool unknown = std::exchange(first_unknown, false);
      texts.push_back(text);
      offsets.push_back(offsets_[choice]);
      offsets_[choice] += static_cast<int64_t>(model_.tokenizer.token_bytes(t.id).size());
      values.push_back(unknown ? OrderedJson() : OrderedJson(json_logprob(t.logprob)));
      OrderedJson top = OrderedJson::object();
      for (const TokenLogprob& o : t.top) {
        const std::string other = token_text(o.id);
        if (!top.contains(other)) top[other] = json_logprob(o.logprob);
      }
      if (top_ > 0 && !top.contains(text)) top[text] = json_logprob(t.logprob);
      tops.push_back(unknown || top_ == 0 ? OrderedJson() : std::move(top));
    }
    return {{"tokens", std::move(texts)},
            {"token_logprobs", std::move(values)},
            {"top_logprobs", std::move(tops)},
            {"text_offset", std::move(offsets)}};
  }

  const ServedModel& model_;
  std::string id_;
  int64_t created_;
  bool logprobs_, reads_, echo_, usage_;
  int64_t top_;
  std::vector<int64_t> offsets_;      // bytes of text before the next token, by choice
  std::vector<std::string> prompts_;  // by choice, if they are echoed
};

}  // namespace

std::unique_ptr<Reply> make_completion_reply(const Call& call, const ServedModel& model) {
  return std::make_unique<CompletionReply>(call, model);
}

}  // namespace tamis::server
