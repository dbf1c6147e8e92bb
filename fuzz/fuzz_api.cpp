// Bodies of the API's requests from anywhere. The first byte chooses the route. A body is refused
// with a 4xx, or what was read keeps within what the engine can take. With the three highest bits,
// the error must be strict JSON, and the same body twice give the same: for one input in eight, as
// that takes more than all the rest.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "comm/group.h"
#include "engine/loaded_model.h"
#include "server/api_error.h"
#include "server/call.h"

namespace {

using tamis::server::Call;
using tamis::server::ServedModel;

constexpr int64_t kContext = 256;

void require(bool holds) {
  if (!holds) std::abort();
}

// The bundled model, of which only the configuration and the tokenizer are used.
const ServedModel& served() {
  static const std::string folder = "models/tamis-mini";
  static const tamis::LoadedModel loaded(folder, {}, tamis::single_group());
  static const ServedModel model{
      loaded,
      tamis::Tokenizer::load(folder + "/tokenizer.json"),
      tamis::ChatFormat::kV32,
      tamis::read_generation_defaults(loaded.checkpoint(), loaded.config()),
      "mini",
      {},
      kContext,
      0};
  return model;
}

void check(const Call& call) {
  const int64_t vocab = served().model.config().vocab_size;
  const auto is_id = [&](int64_t id) { return id >= 0 && id < vocab; };
  require(call.n >= 1 && call.n <= tamis::server::kMaxChoices);
  require(!call.prompts.empty() && call.answers() <= tamis::server::kMaxAnswers);
  const tamis::Request& r = call.request;
  require(r.max_tokens >= (call.score_prompt ? 0 : 1));
  for (const auto& prompt : call.prompts) {
    require(!prompt.empty());
    require(static_cast<int64_t>(prompt.size()) + r.max_tokens <= kContext);
    for (const int32_t id : prompt) require(is_id(id));
  }
  for (const int64_t id : r.stop_ids) require(is_id(id));
  require(r.sampling.logit_bias.size() <= 1024);
  for (const auto& [id, bias] : r.sampling.logit_bias) {
    require(is_id(id) && bias >= -100 && bias <= 100);
  }
  require(r.sampling.temperature >= 0 && r.sampling.temperature <= 100);
  require(r.sampling.top_p > 0 && r.sampling.top_p <= 1);
  require(r.sampling.top_k >= 0 && r.sampling.top_logprobs >= 0 && r.sampling.top_logprobs <= 20);
  require(r.priority >= -100 && r.priority <= 100 && r.top_reads >= 0 && r.top_reads <= 64);
  require(!r.attention || r.attention->topk <= kContext);
  for (const std::string& stop : call.generation.stop) require(!stop.empty());
  if (!call.repeated.empty()) tamis::parse_json(call.repeated, "repeated");
}

std::optional<Call> read(uint8_t route, std::string_view body) {
  switch (route & 3) {
    case 0:
      return tamis::server::read_chat_call(body, served());
    case 1:
      return tamis::server::read_completion_call(body, served());
    case 2:
      if ((route & 4) == 0) return tamis::server::read_messages_call(body, served());
      tamis::server::count_message_tokens(body, served());
      return std::nullopt;
    default:
      return tamis::server::read_responses_call(body, served());
  }
}

// What is answered to a body that is refused; empty if it is not.
std::string refusal(uint8_t route, std::string_view body, bool look) {
  try {
    if (const auto call = read(route, body)) check(*call);
    return "";
  } catch (const tamis::server::ApiError& e) {
    require(e.status() >= 400 && e.status() < 500);
    if (!look) return e.what();
    require(tamis::parse_json(tamis::server::openai_error(e), "error").contains("error"));
    tamis::parse_json(tamis::server::anthropic_error(e), "error");
    return e.what();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool look = (data[0] & 0xe0) == 0xe0;
  const std::string once = refusal(data[0], body, look);
  if (look) require(refusal(data[0], body, false) == once);
  return 0;
}
