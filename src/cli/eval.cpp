// tamis eval: the quality of a model on the user's own text.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "eval/perplexity.h"

namespace tamis::cli {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{1} << 30;
constexpr int64_t kDefaultContext = 4096;

struct EvalFlags {
  ModelFlags model;
  PerplexityOptions options;
  std::string text;
  int64_t context = 0;  // 0: kDefaultContext, or the model's maximum if that is less
  bool json = false;
};

std::string range_name(const PositionLoss& p) { return fmt::format("{}-{}", p.first, p.last); }

// The texts of the file, tokenised: of NAME.jsonl the field "text" of each line, else all of it.
std::vector<std::vector<int32_t>> read_documents(const std::string& path,
                                                 const Tokenizer& tokenizer) {
  const std::string text = path == "-" ? read_stdin() : read_text_file(path, kMaxTextBytes);
  std::vector<std::vector<int32_t>> documents;
  if (!path.ends_with(".jsonl")) {
    documents.push_back(tokenizer.encode(text, SpecialTokens::kPlain));
    return documents;
  }
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view own = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (own.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = path + ":" + std::to_string(line);
    const Json json = parse_json(own, where);
    if (!json.is_object() || !json.contains("text") || !json["text"].is_string()) {
      throw InputError(where + ": want an object with a string \"text\"");
    }
    documents.push_back(tokenizer.encode(json["text"].get<std::string>(), SpecialTokens::kPlain));
  }
  if (documents.empty()) throw InputError(path + ": no texts");
  return documents;
}

// Bytes of text that the ids stand for.
int64_t bytes_of(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  int64_t bytes = 0;
  for (const int32_t id : ids) bytes += static_cast<int64_t>(tokenizer.token_bytes(id).size());
  return bytes;
}

// A chunk's losses, all of them and by position, with the bytes of the tokens that are scored.
Json chunk_json(const ChunkLoss& c, const PerplexityResult& r, const Tokenizer& tokenizer,
                const std::vector<std::vector<int32_t>>& documents) {
  const std::span<const int32_t> ids =
      std::span(documents[static_cast<size_t>(c.document)]).subspan(static_cast<size_t>(c.begin));
  Json out{{"tokens", c.loss.tokens}, {"mean_nll", c.loss.mean()}, {"by_position", Json::object()}};
  for (size_t i = 0; i < c.by_position.size(); ++i) {
    const MeanLoss& m = c.by_position[i];
    if (m.tokens == 0) continue;
    const auto first = static_cast<size_t>(r.by_position[i].first);
    out["by_position"][range_name(r.by_position[i])] = {
        m.tokens, m.sum, bytes_of(tokenizer, ids.subspan(first, static_cast<size_t>(m.tokens)))};
  }
  return out;
}

Json as_json(const EvalFlags& f, const PerplexityOptions& o, const PerplexityResult& r,
             int64_t bytes, const Tokenizer& tokenizer,
             const std::vector<std::vector<int32_t>>& documents) {
  Json out{{"nll", r.total.mean()},
           {"perplexity", r.perplexity()},
           {"tokens", r.total.tokens},
           {"bits_per_byte", r.bits_per_byte(bytes)},
           {"bytes", bytes},
           {"context", o.context},
           {"attention", attention_name(o.policy.kind)},
           {"index_topk", o.policy.topk},
           {"precision", precision_name(f.model.runs_in)},
           {"chunks", Json::array()},
           {"by_position", Json::object()}};
  for (const ChunkLoss& c : r.chunks) {
    out["chunks"].push_back(chunk_json(c, r, tokenizer, documents));
  }
  for (const PositionLoss& p : r.by_position) {
    if (p.loss.tokens > 0) out["by_position"][range_name(p)] = p.loss.mean();
  }
  return out;
}

std::string as_text(const PerplexityResult& r, int64_t bytes) {
  std::string out = fmt::format("{:<20} {:.6f}\n{:<20} {:.6f}\n{:<20} {}\n{:<20} {:.6f}\n", "nll",
                                r.total.mean(), "perplexity", r.perplexity(), "tokens",
                                r.total.tokens, "bits per byte", r.bits_per_byte(bytes));
  for (const PositionLoss& p : r.by_position) {
    if (p.loss.tokens == 0) continue;
    out += fmt::format("{:<20} {:.6f}  ({} tokens)\n", "context " + range_name(p), p.loss.mean(),
                       p.loss.tokens);
  }
  return out;
}

int run_eval(const EvalFlags& f) {
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  f.model.place(*context, *model);
  const auto tokenizer = load_tokenizer(f.model.folder);
  if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json");
  const std::vector<std::vector<int32_t>> documents = read_documents(f.text, *tokenizer);
  PerplexityOptions options = f.options;
  options.policy = f.model.policy(model->config());
  options.cache = f.model.cache_options();
  options.context =
      f.context > 0 ? f.context : std::min(kDefaultContext, model->config().max_position);
  int64_t total = 0;
  for (const std::vector<int32_t>& ids : documents) total += static_cast<int64_t>(ids.size());
  const int64_t limit = options.limit_chunks > 0 ? options.limit_chunks * options.context : total;
  const bool print = model->group().rank() == 0;
  Progress progress("scoring tokens", std::min(total, limit), print);
  const PerplexityResult r = measure_perplexity(*context, *model, documents, options,
                                                [&](int64_t tokens) { progress.add(tokens); });
  progress.finish();
  int64_t bytes = 0;
  for (const ChunkLoss& c : r.chunks) {
    const std::span ids(documents[static_cast<size_t>(c.document)]);
    bytes += bytes_of(*tokenizer, ids.subspan(static_cast<size_t>(c.begin),
                                              static_cast<size_t>(c.loss.tokens + 1)));
  }
  if (print) {
    write_stdout(f.json ? as_json(f, options, r, bytes, *tokenizer, documents).dump() + "\n"
                        : as_text(r, bytes));
  }
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_eval(CLI::App& app, CommandBody& chosen) {
  CLI::App* eval = app.add_subcommand("eval", "Measure the quality of a model");
  eval->require_subcommand(1);
  add_eval_exercises(*eval, chosen);
  add_eval_retrieval(*eval, chosen);
  const auto f = std::make_shared<EvalFlags>();
  CLI::App* c = eval->add_subcommand("perplexity", "How well the model predicts a text");
  f->model.add_to(*c);
  c->add_option(
       "--text", f->text,
       "The text, UTF-8; - reads standard input. NAME.jsonl: the field text of each line, apart")
      ->required();
  c->add_option("--context", f->context, "Tokens of a chunk, scored alone (default 4096)")
      ->check(CLI::Range(2, 1 << 30));
  c->add_option("--chunk", f->options.forward, "Tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--limit-chunks", f->options.limit_chunks, "Score only the first chunks")
      ->check(CLI::Range(1, 1 << 30));
  c->add_flag("--json", f->json, "One JSON object, also by chunk and by position");
  c->add_flag("--wrong-index-rope", f->model.wrong_index_rope,
              "Rotate the indexer's keys and queries in the wrong layout: a control that must be "
              "worse");
  c->footer(
      "The first token of each chunk is not scored; nothing is put in front of the text.\n\n"
      "Examples:\n"
      "  tamis eval perplexity -m models/tamis-mini --text notes.txt\n"
      "  tamis eval perplexity -m DIR --text notes.txt --attention window --json");
  c->callback([f, &chosen] { chosen = [f] { return run_eval(*f); }; });
}

}  // namespace tamis::cli
