// What a request of the API asks for, read from its JSON: prompts, sampling, form of the answer.
// Everything here throws ApiError 400 naming the field that is wrong (404 for the model).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "server/generation.h"
#include "server/json_fields.h"
#include "server/served_model.h"
#include "text/grammar/constraint.h"

namespace tamis::server {

constexpr int64_t kMaxChoices = 8;   // n of one request
constexpr int64_t kMaxAnswers = 64;  // prompts times n
constexpr int64_t kMaxMessages = 10'000;

struct Call {
  Request request;  // but for the prompt
  std::vector<std::vector<int32_t>> prompts;
  int64_t n = 1;  // answers to each prompt
  bool stream = false, include_usage = false, progress = false;
  bool echo = false, score_prompt = false;
  GenerationOptions generation;
  // What the answer may look like, and the field that said so. Not yet compiled.
  ConstraintSpec answer = {};
  std::string answer_field;
  // JSON of an object: what /v1/responses repeats of the request.
  std::string repeated;

  int64_t answers() const { return static_cast<int64_t>(prompts.size()) * n; }
};

Call read_chat_call(std::string_view body, const ServedModel& model);
Call read_completion_call(std::string_view body, const ServedModel& model);
Call read_messages_call(std::string_view body, const ServedModel& model);   // Anthropic's
Call read_responses_call(std::string_view body, const ServedModel& model);  // OpenAI's newer one
// Tokens of the prompt that such a request would have.
int64_t count_message_tokens(std::string_view body, const ServedModel& model);

// Parts that other forms of request share.

// The body as JSON; 400 for what is none.
OrderedJson parse_body(std::string_view body);
// model: 404 unless it is the served one's name.
void read_model(Fields& f, const ServedModel& model);
// The request's own salt of the prefix cache; the key's is added to it.
void read_salt(Fields& f, Call& call);
// attention, index_topk, priority.
void read_engine_fields(Fields& f, const ServedModel& model, Call& call);
// temperature, top_p, ..., seed, stop, stop_token_ids, ignore_eos, logit_bias.
void read_sampling(Fields& f, const ServedModel& model, Call& call);
std::vector<std::string> read_stop_texts(Fields& f, const char* key);
// Every way in which a client may ask for thoughts or none.
bool read_thinking(Fields& f);

struct ChatPrompt {
  std::vector<ChatMessage> messages;
  std::vector<ToolSpec> tools;
  bool thinking = false;
  bool add_generation_prompt = true;
};
// Renders into call.prompts and sets call.generation. 400 if the server has no chat format.
void render_prompt(const ChatPrompt& chat, const ServedModel& model, Call& call);
// 400 if the server has no chat format.
void need_chat_format(const ServedModel& model);
// A function for the prompt, from the parts that every API has. `parameters` may be null.
ToolSpec make_tool(std::string name, std::string description, const OrderedJson* parameters,
                   bool strict);
// The messages and tools of {"messages": [...], "tools": [...]}.
ChatPrompt read_chat(std::string_view json, const ServedModel& model);
std::string render_prompt_text(const ChatPrompt& chat, const ServedModel& model);

// Sets max_tokens, or checks it against the room that the longest prompt leaves.
void fit_into_context(std::optional<int64_t> max_tokens, const char* field, int64_t default_tokens,
                      const ServedModel& model, Call& call);

}  // namespace tamis::server
