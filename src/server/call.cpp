#include "server/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "server/answer_format.h"
#include "server/api_error.h"
#include "text/python_json.h"

namespace tamis::server {
namespace {

constexpr const char* kWhere = "request";
constexpr size_t kMaxStops = 16, kMaxStopBytes = 1024, kMaxStopIds = 64, kMaxBiases = 1024;

int32_t token_id(const Fields& f, const std::string& where, const OrderedJson& v, int64_t vocab) {
  const bool integer = v.is_number_integer() && (v.is_number_unsigned() || v >= 0);
  if (!integer || v >= vocab) {
    f.refuse(where,
             fmt::format("want a token id from 0 to {}, got {}", vocab - 1,
                         v.is_primitive() ? printable(v.dump(), 40) : std::string(type_name(v))));
  }
  return v.get<int32_t>();
}

void read_stops(Fields& f, const ServedModel& model, Call& call) {
  call.generation.stop = read_stop_texts(f, "stop");
  if (!f.flag("ignore_eos").value_or(false)) call.request.stop_ids = model.defaults.eos_ids;
  const OrderedJson* ids = f.array("stop_token_ids");
  if (ids == nullptr) return;
  if (ids->size() > kMaxStopIds) {
    f.refuse("stop_token_ids", fmt::format("want at most {}, got {}", kMaxStopIds, ids->size()));
  }
  for (size_t i = 0; i < ids->size(); ++i) {
    call.request.stop_ids.push_back(token_id(f, fmt::format("stop_token_ids[{}]", i), (*ids)[i],
                                             model.model.config().vocab_size));
  }
}

void read_bias(Fields& f, const ServedModel& model, SamplingParams& s) {
  const OrderedJson* bias = f.object("logit_bias");
  if (bias == nullptr) return;
  if (bias->size() > kMaxBiases) {
    f.refuse("logit_bias",
             fmt::format("want at most {} entries, got {}", kMaxBiases, bias->size()));
  }
  const int64_t vocab = model.model.config().vocab_size;
  for (const auto& [key, value] : bias->items()) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab) {
      f.refuse("logit_bias", fmt::format("want token ids from 0 to {} as keys, got '{}'", vocab - 1,
                                         printable(key, 40)));
    }
    const bool ok = value.is_number() && value.get<double>() >= -100 && value.get<double>() <= 100;
    if (!ok) f.refuse("logit_bias", fmt::format("want -100 to 100 for id {}", id));
    s.logit_bias.emplace_back(static_cast<int32_t>(id), value.get<float>());
  }
}

void read_stream(Fields& f, Call& call) {
  call.stream = f.flag("stream").value_or(false);
  call.progress = f.flag("return_progress").value_or(false) && call.stream;
  const OrderedJson* options = f.object("stream_options");
  if (options == nullptr) return;
  if (!call.stream) f.refuse("stream_options", "is only for stream: true");
  Fields o(*options, "stream_options");
  call.include_usage = o.flag("include_usage").value_or(false);
  o.ignore({"include_obfuscation", "continuous_usage_stats"});
  o.no_others();
}

// Fields of OpenAI's that say who asks or how it is billed.
void ignore_bookkeeping(Fields& f) {
  f.ignore({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_retention", "cache_prompt", "timings_per_token", "verbosity"});
}

// true, or how many context positions a token.
void read_selection(Fields& f, Call& call) {
  constexpr int64_t kDefault = 8, kMost = 64;
  const OrderedJson* v = f.find("return_selection");
  if (v == nullptr) return;
  call.request.top_reads = v->is_boolean() ? (v->get<bool>() ? kDefault : 0)
                                           : f.integer("return_selection", 0, kMost).value_or(0);
  call.generation.reads = call.request.top_reads > 0;
}

std::optional<int64_t> read_max_tokens(Fields& f, const char*& field) {
  field = "max_completion_tokens";
  auto most = f.integer(field, 1, INT32_MAX);
  const auto old = f.integer("max_tokens", 1, INT32_MAX);
  if (most) return most;
  field = "max_tokens";
  return old;
}

void read_choices(Fields& f, Call& call) {
  call.n = f.integer("n", 1, kMaxChoices).value_or(1);
  const auto best_of = f.integer("best_of", 1, kMaxChoices);
  if (best_of && *best_of != call.n) f.refuse("best_of", "only the value of n is supported");
}

std::vector<int32_t> read_id_list(const Fields& f, const std::string& where,
                                  const OrderedJson& list, int64_t vocab) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const OrderedJson& v : list) {
    ids.push_back(token_id(f, fmt::format("{}[{}]", where, ids.size()), v, vocab));
  }
  if (ids.empty()) f.refuse(where, "is empty");
  return ids;
}

std::vector<int32_t> read_text_prompt(const Fields& f, const std::string& where,
                                      const std::string& text, const ServedModel& model,
                                      bool add_bos) {
  if (text.empty()) f.refuse(where, "is empty");
  return encode_prompt(model.tokenizer, model.model.config(), text, add_bos);
}

// A text, a list of ids, or a list of either.
void read_prompts(Fields& f, const ServedModel& model, Call& call) {
  const bool add_bos = f.flag("add_special_tokens").value_or(true);
  const OrderedJson* prompt = f.find("prompt");
  if (prompt == nullptr) f.refuse("prompt", "is missing");
  const int64_t vocab = model.model.config().vocab_size;
  const auto add = [&](const std::string& where, const OrderedJson& v) {
    if (v.is_string()) {
      call.prompts.push_back(read_text_prompt(f, where, v.get<std::string>(), model, add_bos));
    } else if (v.is_array()) {
      call.prompts.push_back(read_id_list(f, where, v, vocab));
    } else {
      f.refuse(where, fmt::format("want a string or token ids, got {}", type_name(v)));
    }
  };
  const bool several = prompt->is_array() && !prompt->empty() &&
                       (prompt->front().is_string() || prompt->front().is_array());
  if (!several) return add("prompt", *prompt);
  if (static_cast<int64_t>(prompt->size()) * call.n > kMaxAnswers) {
    f.refuse("prompt", fmt::format("want at most {} prompts times n, got {}", kMaxAnswers,
                                   prompt->size() * static_cast<size_t>(call.n)));
  }
  for (size_t i = 0; i < prompt->size(); ++i) add(fmt::format("prompt[{}]", i), (*prompt)[i]);
}

}  // namespace

OrderedJson parse_body(std::string_view body) {
  if (body.empty()) throw ApiError(400, "the body is empty: want a JSON object");
  try {
    return parse_python_json(body, kWhere);
  } catch (const InputError& e) {
    throw from_input_error(e.what(), kWhere);
  }
}

void read_model(Fields& f, const ServedModel& model) {
  const auto name = f.text("model");
  if (!name || *name == model.name) return;
  throw ApiError(
      404, "model: '" + printable(*name, 80) + "' is not served here, '" + model.name + "' is",
      "model", "model_not_found");
}

std::vector<std::string> read_stop_texts(Fields& f, const char* key) {
  std::vector<std::string> stops = f.texts(key, kMaxStops);
  for (const std::string& s : stops) {
    if (s.size() > kMaxStopBytes) {
      f.refuse(key, fmt::format("want at most {} bytes, got {}", kMaxStopBytes, s.size()));
    }
  }
  return stops;
}

void read_salt(Fields& f, Call& call) {
  const auto salt = f.text("cache_salt");
  if (!salt) return;
  if (salt->empty() || salt->size() > 256) f.refuse("cache_salt", "want 1 to 256 bytes");
  call.request.cache_salt = *salt;
}

void read_engine_fields(Fields& f, const ServedModel& model, Call& call) {
  call.request.priority = f.integer("priority", -100, 100).value_or(0);
  const auto name = f.text("attention");
  const auto topk = f.integer("index_topk", 1, model.max_context);
  if (!topk && (!name || *name == "auto")) return;
  SelectionPolicy policy = model.policy;
  if (name && *name != "auto") {
    if (*name != "sparse" && *name != "dense" && *name != "window") {
      f.refuse("attention", "want auto, sparse, dense or window");
    }
    policy.kind = attention_from_name(*name);
  }
  if (topk) policy.topk = *topk;
  call.request.attention = policy;
}

void read_sampling(Fields& f, const ServedModel& model, Call& call) {
  SamplingParams& s = call.request.sampling;
  s = model.defaults.sampling;
  if (auto v = f.number("temperature", 0, 100)) s.temperature = static_cast<float>(*v);
  if (auto v = f.number("top_p", 0, 1)) {
    if (static_cast<float>(*v) <= 0) f.refuse("top_p", "want more than 0");
    s.top_p = static_cast<float>(*v);
  }
  if (auto v = f.integer("top_k", -1, INT32_MAX)) s.top_k = std::max<int64_t>(*v, 0);
  if (auto v = f.number("min_p", 0, 1)) s.min_p = static_cast<float>(*v);
  if (auto v = f.number("repetition_penalty", 0.01, 100)) {
    s.repetition_penalty = static_cast<float>(*v);
  }
  if (auto v = f.number("frequency_penalty", -2, 2)) s.frequency_penalty = static_cast<float>(*v);
  if (auto v = f.number("presence_penalty", -2, 2)) s.presence_penalty = static_cast<float>(*v);
  if (auto v = f.integer("seed", INT64_MIN, INT64_MAX)) s.seed = static_cast<uint64_t>(*v);
  read_bias(f, model, s);
  read_salt(f, call);
  read_engine_fields(f, model, call);
  read_stops(f, model, call);
}

bool read_thinking(Fields& f) {
  bool thinking = false;
  if (auto effort = f.text("reasoning_effort")) {
    const std::vector<std::string> known = {"none", "minimal", "low", "medium", "high", "xhigh"};
    if (std::find(known.begin(), known.end(), *effort) == known.end()) {
      f.refuse("reasoning_effort", "want none, minimal, low, medium, high or xhigh");
    }
    thinking = *effort != "none";
  }
  if (auto v = f.flag("enable_thinking")) thinking = *v;
  if (const OrderedJson* v = f.find("thinking")) {
    if (v->is_boolean()) {
      thinking = v->get<bool>();
    } else {
      Fields t(*v, f.path_of("thinking"));
      const std::string type = t.text("type").value_or("");
      if (type != "enabled" && type != "disabled" && type != "adaptive") {
        t.refuse("type", "want enabled, disabled or adaptive");
      }
      thinking = type != "disabled";
      t.ignore({"budget_tokens", "display"});
      t.no_others();
    }
  }
  if (const OrderedJson* kwargs = f.object("chat_template_kwargs")) {
    Fields k(*kwargs, f.path_of("chat_template_kwargs"));
    if (auto v = k.flag("enable_thinking")) thinking = *v;
    if (auto v = k.flag("thinking")) thinking = *v;
    k.no_others();
  }
  return thinking;
}

void need_chat_format(const ServedModel& model) {
  if (model.format) return;
  throw ApiError(400,
                 "the checkpoint's chat format is unknown: use /v1/completions, or start "
                 "the server with --chat-format");
}

ToolSpec make_tool(std::string name, std::string description, const OrderedJson* parameters,
                   bool strict) {
  ToolSpec tool;
  OrderedJson function{{"name", name}};
  if (!description.empty()) function["description"] = description;
  if (parameters != nullptr) function["parameters"] = *parameters;
  tool.name = std::move(name);
  tool.description = std::move(description);
  tool.parameters_json = parameters == nullptr ? "{}" : python_json_dump(*parameters);
  tool.function_json = python_json_dump(function);
  tool.strict = strict;
  return tool;
}

ChatPrompt read_chat(std::string_view json, const ServedModel& model) {
  need_chat_format(model);
  try {
    ChatRequest request = parse_messages(json, kWhere);
    if (request.messages.empty()) throw ApiError(400, "messages: is empty", "messages");
    if (static_cast<int64_t>(request.messages.size()) > kMaxMessages) {
      throw ApiError(
          400,
          fmt::format("messages: want at most {}, got {}", kMaxMessages, request.messages.size()),
          "messages");
    }
    return {std::move(request.messages), std::move(request.tools), false, true};
  } catch (const InputError& e) {
    throw from_input_error(e.what(), kWhere);
  }
}

namespace {

std::vector<PromptPiece> pieces_of(const ChatPrompt& chat, const ServedModel& model) {
  RenderOptions options;
  options.thinking = chat.thinking;
  options.tools = chat.tools;
  options.add_generation_prompt = chat.add_generation_prompt;
  try {
    auto pieces = render_pieces(*model.format, chat.messages, options);
    strip_prefix_eos(chat.messages, pieces);
    return pieces;
  } catch (const InputError& e) {
    throw ApiError(400, e.what(), "messages");
  }
}

}  // namespace

void render_prompt(const ChatPrompt& chat, const ServedModel& model, Call& call) {
  const auto pieces = pieces_of(chat, model);
  call.prompts.push_back(encode_chat(model.tokenizer, pieces));
  call.generation.format = model.format;
  call.generation.in_thinking = starts_in_thinking(pieces);
  call.answer.format = *model.format;
  call.answer.in_thinking = call.generation.in_thinking;
  call.answer.parallel = !call.generation.one_call;
}

std::string render_prompt_text(const ChatPrompt& chat, const ServedModel& model) {
  std::string text;
  for (const PromptPiece& piece : pieces_of(chat, model)) text += piece.text;
  return text;
}

void fit_into_context(std::optional<int64_t> max_tokens, const char* field, int64_t default_tokens,
                      const ServedModel& model, Call& call) {
  size_t longest = 0;
  for (const auto& prompt : call.prompts) longest = std::max(longest, prompt.size());
  const int64_t room = model.max_context - static_cast<int64_t>(longest);
  const char* prompt_field = call.generation.format ? "messages" : "prompt";
  if (room < 1) {
    throw ApiError(400,
                   fmt::format("{}: the prompt has {} tokens, the context holds {} and needs room "
                               "for an answer",
                               prompt_field, longest, model.max_context),
                   prompt_field, "context_length_exceeded");
  }
  if (max_tokens && *max_tokens > room) {
    throw ApiError(400,
                   fmt::format("{}: the prompt has {} tokens and {} are asked for, the context "
                               "holds {}",
                               field, longest, *max_tokens, model.max_context),
                   field, "context_length_exceeded");
  }
  call.request.max_tokens = max_tokens.value_or(std::min(room, default_tokens));
}

Call read_chat_call(std::string_view body, const ServedModel& model) {
  const OrderedJson root = parse_body(body);
  Fields f(root, "");
  Call call;
  read_model(f, model);
  read_choices(f, call);
  read_stream(f, call);
  read_sampling(f, model, call);
  call.generation.logprobs = f.flag("logprobs").value_or(false);
  if (auto top = f.integer("top_logprobs", 0, 20)) {
    if (*top > 0 && !call.generation.logprobs) f.refuse("top_logprobs", "needs logprobs: true");
    call.request.sampling.top_logprobs = *top;
  }
  const char* field = "";
  const auto max_tokens = read_max_tokens(f, field);
  read_selection(f, call);
  const ToolChoice choice = read_tool_choice(f);
  call.generation.one_call = !f.flag("parallel_tool_calls").value_or(true);
  read_answer_format(f, call);
  const bool thinking = read_thinking(f);
  ignore_bookkeeping(f);
  f.ignore({"messages", "tools"});
  f.only("modalities", OrderedJson::array({"text"}));
  f.no_others();
  if (root.find("messages") == root.end()) f.refuse("messages", "is missing");
  ChatPrompt chat = read_chat(body, model);
  chat.thinking = thinking;
  const bool may_call = choice.mode != ToolChoice::Mode::kNone;
  if (!may_call) chat.tools.clear();
  call.generation.tools = may_call;
  apply_tool_choice(choice, chat, call);
  render_prompt(chat, model, call);
  fit_into_context(max_tokens, field, model.max_context, model, call);
  return call;
}

Call read_completion_call(std::string_view body, const ServedModel& model) {
  const OrderedJson root = parse_body(body);
  Fields f(root, "");
  Call call;
  read_model(f, model);
  read_choices(f, call);
  read_stream(f, call);
  read_sampling(f, model, call);
  call.echo = f.flag("echo").value_or(false);
  if (auto logprobs = f.integer("logprobs", 0, 20)) {
    call.generation.logprobs = true;
    call.request.sampling.top_logprobs = *logprobs;
    call.score_prompt = call.echo;
  }
  const auto max_tokens = f.integer("max_tokens", call.score_prompt ? 0 : 1, INT32_MAX);
  if (f.text("suffix").value_or("") != "") f.refuse("suffix", "is not supported");
  read_prompts(f, model, call);
  read_selection(f, call);
  read_answer_format(f, call);
  ignore_bookkeeping(f);
  f.no_others();
  if (!call.answer_field.empty() && call.score_prompt) {
    f.refuse("echo", "is not for " + call.answer_field + " with logprobs");
  }
  if (call.generation.reads && call.score_prompt) {
    f.refuse("return_selection", "is not for echo with logprobs");
  }
  if (call.stream && call.score_prompt) f.refuse("stream", "is not for echo with logprobs");
  fit_into_context(max_tokens, "max_tokens", 16, model, call);
  return call;
}

}  // namespace tamis::server
