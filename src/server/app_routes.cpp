// The routes that write nothing new: what the server is, and what its tokenizer does.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/utf8.h"
#include "model/selector.h"
#include "server/app.h"
#include "server/web_page.h"

namespace tamis::server {
namespace {

HttpResponse json_response(const OrderedJson& value) {
  HttpResponse response;
  response.body = dump(value);
  return response;
}

OrderedJson model_json(const ServedModel& m) {
  const ModelConfig& c = m.model.config();
  return {{"id", m.name},
          {"object", "model"},
          {"created", m.created},
          {"owned_by", "tamis"},
          {"max_model_len", m.max_context},
          {"meta",
           {{"n_vocab", c.vocab_size},
            {"n_ctx_train", c.max_position},
            {"n_embd", c.hidden_size},
            {"n_layer", c.num_layers()},
            {"index_topk", c.index_topk}}}};
}

}  // namespace

HttpResponse App::web_page(const HttpRequest& request) { return web_response(request); }

HttpResponse App::livez(const HttpRequest&) { return json_response({{"status", "ok"}}); }

HttpResponse App::health(const HttpRequest&) {
  const EngineThread* engine = engine_;
  if (model_.load() == nullptr) throw ApiError(503, "the model is being loaded");
  if (draining_) throw ApiError(503, "the server is shutting down");
  if (!engine->healthy(options_.stall_limit)) throw ApiError(503, "the engine stands still");
  return json_response({{"status", "ok"}});
}

HttpResponse App::metrics_page(const HttpRequest&) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  const EngineThread* engine = engine_;
  response.body =
      metrics_.render(engine == nullptr ? EngineGauges() : engine->gauges(), options_.version);
  return response;
}

HttpResponse App::version(const HttpRequest&) {
  return json_response({{"version", options_.version}});
}

HttpResponse App::props(const HttpRequest&) {
  const ServedModel& m = model();
  const SamplingParams& s = m.defaults.sampling;
  return json_response(
      {{"model_alias", m.name},
       {"model_type", m.model.config().model_type},
       {"chat_format", m.format ? OrderedJson(chat_format_name(*m.format)) : OrderedJson()},
       {"total_slots", options_.max_requests},
       {"default_generation_settings",
        {{"n_ctx", m.max_context},
         {"params", {{"temperature", s.temperature}, {"top_p", s.top_p}, {"top_k", s.top_k}}}}},
       {"build_info", "tamis " + options_.version}});
}

HttpResponse App::models(const HttpRequest& request) {
  const ServedModel& m = model();
  if (request.path == "/v1/models") {
    return json_response({{"object", "list"}, {"data", OrderedJson::array({model_json(m)})}});
  }
  if (request.path.substr(11) != m.name) {
    throw ApiError(404, "there is no such model", "model", "model_not_found");
  }
  return json_response(model_json(m));
}

// Both forms of request: vLLM's prompt or messages, llama.cpp's content.
HttpResponse App::tokenize(const HttpRequest& request) {
  const OrderedJson root = parse_body(request.body);
  Fields f(root, "");
  read_model(f, model());
  const auto prompt = f.text("prompt"), content = f.text("content");
  const auto special = f.flag("add_special_tokens"), add = f.flag("add_special");
  const bool parse = f.flag("parse_special").value_or(true);
  const bool thinking = read_thinking(f);
  const bool generation_prompt = f.flag("add_generation_prompt").value_or(true);
  const bool texts = f.flag("return_token_strs").value_or(false);
  f.ignore({"messages", "tools", "with_pieces"});
  f.no_others();
  std::vector<int32_t> ids;
  if (root.find("messages") != root.end()) {
    ChatPrompt chat = read_chat(request.body, model());
    chat.thinking = thinking;
    chat.add_generation_prompt = generation_prompt;
    Call call;
    render_prompt(chat, model(), call);
    ids = std::move(call.prompts.front());
  } else if (prompt) {
    ids = encode_prompt(model().tokenizer, model().model.config(), *prompt, special.value_or(true));
  } else if (content) {
    const bool bos = add.value_or(false);
    ids = parse ? encode_prompt(model().tokenizer, model().model.config(), *content, bos)
                : model().tokenizer.encode(*content, SpecialTokens::kPlain);
  } else {
    f.refuse("prompt", "is missing; want prompt, content or messages");
  }
  OrderedJson out{{"tokens", ids}, {"count", ids.size()}, {"max_model_len", model().max_context}};
  if (texts) {
    out["token_strs"] = OrderedJson::array();
    for (const int32_t id : ids) {
      out["token_strs"].push_back(utf8_lossy(model().tokenizer.token_bytes(id)));
    }
  }
  return json_response(out);
}

HttpResponse App::detokenize(const HttpRequest& request) {
  const OrderedJson root = parse_body(request.body);
  Fields f(root, "");
  read_model(f, model());
  const OrderedJson* tokens = f.array("tokens");
  f.no_others();
  if (tokens == nullptr) f.refuse("tokens", "is missing");
  std::vector<int32_t> ids;
  for (const OrderedJson& v : *tokens) {
    const bool fits = v.is_number_integer() && v >= 0 && v < model().model.config().vocab_size;
    if (!fits) f.refuse(fmt::format("tokens[{}]", ids.size()), "want a token id");
    ids.push_back(v.get<int32_t>());
  }
  const std::string text = model().tokenizer.decode(ids);
  return json_response({{"prompt", text}, {"content", text}});
}

HttpResponse App::apply_template(const HttpRequest& request) {
  const OrderedJson root = parse_body(request.body);
  Fields f(root, "");
  read_model(f, model());
  const bool thinking = read_thinking(f);
  const bool generation_prompt = f.flag("add_generation_prompt").value_or(true);
  f.ignore({"messages", "tools"});
  f.no_others();
  if (root.find("messages") == root.end()) f.refuse("messages", "is missing");
  ChatPrompt chat = read_chat(request.body, model());
  chat.thinking = thinking;
  chat.add_generation_prompt = generation_prompt;
  return json_response({{"prompt", render_prompt_text(chat, model())}});
}

HttpResponse App::count_tokens(const HttpRequest& request) {
  return json_response({{"input_tokens", count_message_tokens(request.body, model())}});
}

HttpResponse App::embeddings(const HttpRequest&) {
  throw ApiError(501, "this model writes text: it has no embeddings to give");
}

}  // namespace tamis::server
