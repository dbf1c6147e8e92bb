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

struct Flags {
  ModelFlags model;
  PerplexityOptions options;
  std::string text;
  int64_t context = 0;  // 0: kDefaultContext, or the model's maximum if that is less
  bool json = false;
};

std::string range_name(const PositionLoss& p) { return fmt::format("{}-{}", p.first, p.last); }

Json as_json(const Flags& f, const PerplexityOptions& o, const PerplexityResult& r, int64_t bytes) {
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
  for (const MeanLoss& c : r.chunks) {
    out["chunks"].push_back({{"tokens", c.tokens}, {"mean_nll", c.mean()}});
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

// Bytes of text that the first `tokens` ids stand for.
int64_t bytes_of(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  int64_t bytes = 0;
  for (const int32_t id : ids) bytes += static_cast<int64_t>(tokenizer.token_bytes(id).size());
  return bytes;
}

int run(const Flags& f) {
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  f.model.place(*context, *model);
  const auto tokenizer = load_tokenizer(f.model.folder);
  if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json");
  const std::string text = f.text == "-" ? read_stdin() : read_text_file(f.text, kMaxTextBytes);
  const std::vector<int32_t> ids = tokenizer->encode(text, SpecialTokens::kPlain);
  PerplexityOptions options = f.options;
  options.policy = f.model.policy(model->config());
  options.cache = f.model.cache_options();
  options.context =
      f.context > 0 ? f.context : std::min(kDefaultContext, model->config().max_position);
  const auto total = static_cast<int64_t>(ids.size());
  const int64_t limit = options.limit_chunks > 0 ? options.limit_chunks * options.context : total;
  const bool print = model->group().rank() == 0;
  Progress progress("scoring tokens", std::min(total, limit), print);
  const PerplexityResult r = measure_perplexity(*context, *model, ids, options,
                                                [&](int64_t tokens) { progress.add(tokens); });
  progress.finish();
  const int64_t bytes =
      bytes_of(*tokenizer, std::span(ids).first(static_cast<size_t>(r.read_tokens)));
  if (print) {
    write_stdout(f.json ? as_json(f, options, r, bytes).dump() + "\n" : as_text(r, bytes));
  }
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_eval(CLI::App& app, CommandBody& chosen) {
  CLI::App* eval = app.add_subcommand("eval", "Measure the quality of a model");
  eval->require_subcommand(1);
  add_eval_retrieval(*eval, chosen);
  const auto f = std::make_shared<Flags>();
  CLI::App* c = eval->add_subcommand("perplexity", "How well the model predicts a text");
  f->model.add_to(*c);
  c->add_option("--text", f->text, "The text, UTF-8; - reads standard input")->required();
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
  c->callback([f, &chosen] { chosen = [f] { return run(*f); }; });
}

}  // namespace tamis::cli
