// tamis generate: a completion of one prompt.
#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/sampling_flags.h"
#include "cli/speculation_flags.h"
#include "cli/support.h"
#include "engine/engine.h"
#include "engine/prompt.h"
#include "engine/text_stream.h"

namespace tamis::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kMaxPromptBytes = int64_t{1} << 30;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct GenerateFlags {
  ModelFlags model;
  SamplingFlags sampling;
  SpeculationFlags speculation;
  std::string prompt, prompt_file, prompt_ids, chat, tools;
  bool thinking = false, no_bos = false, json = false, quiet = false;
  int64_t chunk = 512;
};

std::vector<int32_t> chat_ids(const GenerateFlags& f, const LoadedModel& model,
                              const Tokenizer& tok) {
  ChatRequest chat = parse_messages(
      f.chat == "-" ? read_stdin() : read_text_file(f.chat, kMaxPromptBytes), f.chat);
  RenderOptions options;
  options.thinking = f.thinking;
  options.tools = chat.tools;
  if (!f.tools.empty()) options.tools = parse_tools(read_text_file(f.tools, 1 << 26), f.tools);
  auto pieces =
      render_pieces(detect_chat_format(model.checkpoint().folder()), chat.messages, options);
  strip_prefix_eos(chat.messages, pieces);
  return encode_chat(tok, pieces);
}

std::vector<int32_t> explicit_ids(const std::string& list) { return parse_ids("[" + list + "]"); }

std::vector<int32_t> prompt_of(const GenerateFlags& f, const LoadedModel& model,
                               const Tokenizer* tok) {
  const int given = static_cast<int>(!f.prompt.empty()) + static_cast<int>(!f.prompt_file.empty()) +
                    static_cast<int>(!f.prompt_ids.empty()) + static_cast<int>(!f.chat.empty());
  if (given != 1) {
    throw UsageError("want exactly one of --prompt, --prompt-file, --prompt-ids, --chat");
  }
  if (!f.prompt_ids.empty()) return explicit_ids(f.prompt_ids);
  if (tok == nullptr) throw InputError(f.model.folder + ": no tokenizer.json; use --prompt-ids");
  if (!f.chat.empty()) return chat_ids(f, model, *tok);
  const std::string text = !f.prompt.empty()      ? f.prompt
                           : f.prompt_file == "-" ? read_stdin()
                                                  : read_text_file(f.prompt_file, kMaxPromptBytes);
  return encode_prompt(*tok, model.config(), text, !f.no_bos);
}

struct Result {
  std::vector<int32_t> ids;
  std::string text;
  FinishReason finish = FinishReason::kNone;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t cached = 0;
  Json logprobs = Json::array();
};

void add_logprob(const TokenEvent& e, const Tokenizer* tok, Result& result) {
  Json entry{{"id", e.token.id}, {"logprob", e.token.logprob}, {"top", Json::array()}};
  for (const TokenLogprob& t : e.token.top) {
    Json top{{"id", t.id}, {"logprob", t.logprob}};
    if (tok != nullptr) top["token"] = tok->decode(std::vector<int32_t>{t.id});
    entry["top"].push_back(std::move(top));
  }
  result.logprobs.push_back(std::move(entry));
}

// Runs the one request to its end; text goes out as it comes unless --json.
Result run_request(const GenerateFlags& f, Engine& engine, Request request, TextStream* stream,
                   const Tokenizer* tok, bool print) {
  Result result;
  const bool logprobs = request.sampling.top_logprobs > 0;
  Progress progress("reading the prompt", static_cast<int64_t>(request.prompt.size()),
                    print && !f.quiet);
  const int64_t number = engine.submit(std::move(request));
  std::vector<TokenEvent> events;
  const auto start = Clock::now();
  auto first = start;
  const auto emit = [&](const std::string& text) {
    result.text += text;
    if (print && !f.json) write_stdout(text);
  };
  while (result.finish == FinishReason::kNone) {
    engine.step(events);
    if (events.empty()) {
      progress.add(f.chunk);
      continue;
    }
    const TokenEvent& e = events.front();
    progress.finish();
    if (e.finish == FinishReason::kError) throw InputError(e.error);
    if (result.ids.empty()) {
      first = Clock::now();
      result.cached = engine.cached_tokens(number);
    }
    if (e.token.id >= 0) {
      result.ids.push_back(e.token.id);
      if (logprobs) add_logprob(e, tok, result);
    }
    result.finish = e.finish;
    if (stream == nullptr || e.finish == FinishReason::kStop) continue;
    emit(stream->push(e.token.id));
    if (stream->stopped() && e.finish == FinishReason::kNone) {
      engine.cancel(number);
      engine.step(events);
      result.finish = FinishReason::kStop;
    }
  }
  if (stream != nullptr) emit(stream->finish());
  result.prefill_seconds = std::chrono::duration<double>(first - start).count();
  result.decode_seconds = seconds_since(first);
  return result;
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void report(const GenerateFlags& f, const std::vector<int32_t>& prompt, const Result& r,
            double load_seconds) {
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  const auto decoded = static_cast<int64_t>(r.ids.size()) - 1;
  if (f.json) {
    Json out{{"prompt_ids", prompt},
             {"ids", r.ids},
             {"text", r.text},
             {"finish_reason", finish_reason_name(r.finish)},
             {"timings",
              {{"load_s", load_seconds},
               {"prompt_tokens", prompt_tokens},
               {"prompt_s", r.prefill_seconds},
               {"prompt_per_s", rate(prompt_tokens - r.cached, r.prefill_seconds)},
               {"decode_tokens", decoded},
               {"decode_s", r.decode_seconds},
               {"decode_per_s", rate(decoded, r.decode_seconds)}}}};
    if (!r.logprobs.empty()) out["logprobs"] = r.logprobs;
    write_stdout(out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    return;
  }
  write_stdout("\n");
  if (f.quiet) return;
  std::fprintf(stderr,
               "\n%lld prompt tokens in %.2f s (%.0f/s), %lld tokens in %.2f s (%.1f/s), "
               "loaded in %.2f s\n",
               static_cast<long long>(prompt_tokens), r.prefill_seconds,
               rate(prompt_tokens, r.prefill_seconds), static_cast<long long>(decoded + 1),
               r.decode_seconds, rate(decoded, r.decode_seconds), load_seconds);
}

int run_generate(const GenerateFlags& f) {
  const auto start = Clock::now();
  const auto context = f.model.make_context();
  const auto model = f.model.load(f.speculation.on());
  const auto tokenizer = load_tokenizer(f.model.folder);
  const Tokenizer* tok = tokenizer ? &*tokenizer : nullptr;
  Request request;
  request.prompt = prompt_of(f, *model, tok);
  f.sampling.apply(read_generation_defaults(model->checkpoint(), model->config()), request);
  EngineOptions options;
  options.policy = f.model.policy(model->config());
  options.cache = f.model.cache_options();
  options.chunk = f.chunk;
  f.speculation.apply(options);
  options.prefix_cache = false;
  options.max_context =
      std::min<int64_t>(model->config().max_position,
                        static_cast<int64_t>(request.prompt.size()) + request.max_tokens);
  options.cache.pages = pages_for(options.max_context);
  f.model.place(*context, *model, !f.quiet);
  Engine engine(*model, *context, options);
  std::unique_ptr<TextStream> stream;
  if (tok != nullptr) stream = std::make_unique<TextStream>(*tok, f.sampling.stop);
  const double load_seconds = seconds_since(start);
  const std::vector<int32_t> prompt = request.prompt;
  const bool print = model->group().rank() == 0;
  const Result result = run_request(f, engine, std::move(request), stream.get(), tok, print);
  if (print) report(f, prompt, result, load_seconds);
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, CommandBody& chosen) {
  const auto f = std::make_shared<GenerateFlags>();
  CLI::App* c = app.add_subcommand("generate", "Complete one prompt");
  c->add_option("--prompt", f->prompt, "The prompt");
  c->add_option("--prompt-file", f->prompt_file, "A file with the prompt; - reads standard input");
  c->add_option("--prompt-ids", f->prompt_ids, "The prompt as token ids: 0,5,9");
  c->add_option("--chat", f->chat, "A JSON file of chat messages; - reads standard input");
  c->add_option("--tools", f->tools, "A JSON file of tools offered with --chat");
  c->add_flag("--thinking", f->thinking, "Chat: let the model think before it answers");
  c->add_flag("--no-bos", f->no_bos, "Do not put the beginning-of-sentence token in front");
  c->add_flag("--json", f->json, "Print one JSON object instead of text");
  c->add_flag("-q,--quiet", f->quiet, "No progress and no timings on stderr");
  c->add_option("--chunk", f->chunk, "Prompt tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  f->speculation.add_to(*c);
  f->sampling.add_to(*c);
  f->model.add_to(*c);
  c->footer(
      "Examples:\n"
      "  tamis generate -m models/tamis-mini --prompt 'The package manager' --max-tokens 32\n"
      "  tamis generate -m DIR --chat messages.json --thinking --temperature 0.7 --seed 1\n"
      "  tamis generate -m DIR --prompt-file long.txt --attention dense --json");
  c->callback([f, &chosen] { chosen = [f] { return run_generate(*f); }; });
}

}  // namespace tamis::cli
