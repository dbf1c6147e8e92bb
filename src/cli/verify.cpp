// tamis verify: a back end against the reference on the user's weights.
#include "eval/verify.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"

namespace tamis::cli {
namespace {

struct VerifyFlags {
  ModelFlags model;
  std::string text;
  int64_t tokens = 0, greedy = 8;
  uint64_t seed = 1;
  bool json = false;
};

// What was run, beside the results.
struct Run {
  int64_t tokens = 0, index_topk = 0, checkpoint_topk = 0;
};

Json number(double x) { return std::isfinite(x) ? Json(x) : Json("infinite"); }

Json as_json(const VerifyFlags& f, const Run& run, const VerifyReport& r) {
  Json out{{"pass", r.pass()},
           {"backend", f.model.backend},
           {"precision", f.model.precision},
           {"tokens", run.tokens},
           {"index_topk", run.index_topk},
           {"checkpoint_index_topk", run.checkpoint_topk},
           {"tensors", Json::array()},
           {"decisions", Json::array()},
           {"failures", r.comparison.failures},
           {"controls", Json::array()}};
  for (const TensorError& e : r.comparison.tensors) {
    out["tensors"].push_back({{"layer", e.layer},
                              {"name", e.name},
                              {"rows", e.rows},
                              {"compared", e.compared},
                              {"max_abs", number(e.max_abs)},
                              {"max_abs_limit", number(e.max_abs_limit)},
                              {"rel_rms", number(e.rel_rms)},
                              {"rel_rms_limit", e.rel_rms_limit},
                              {"pass", e.pass()}});
  }
  for (const DecisionError& d : r.comparison.decisions) {
    out["decisions"].push_back({{"layer", d.layer},
                                {"name", d.name},
                                {"rows", d.rows},
                                {"equal", d.equal},
                                {"excused", d.excused},
                                {"wrong", d.wrong},
                                {"overlap", d.overlap},
                                {"pass", d.pass()}});
  }
  for (const VerifyControl& c : r.controls) {
    out["controls"].push_back(
        {{"name", c.name}, {"skipped", c.skipped}, {"found", c.found}, {"pass", c.pass()}});
  }
  return out;
}

std::string decision_text(const DecisionError& d) {
  std::string text = fmt::format("{}/{} equal", d.equal, d.rows);
  if (d.excused > 0) text += fmt::format(", {} within rounding", d.excused);
  if (d.wrong > 0) text += fmt::format(", {} wrong", d.wrong);
  return text + (d.pass() ? "" : "  FAIL");
}

std::string as_text(const VerifyReport& r) {
  std::string out = fmt::format("{:<6} {:<14} {:>10} {:>10} {:>10} {:>10}\n", "layer", "tensor",
                                "rel rms", "limit", "max abs", "limit");
  const auto layer_name = [](int64_t l) { return l < 0 ? "-" : std::to_string(l); };
  for (const TensorError& e : r.comparison.tensors) {
    out += fmt::format("{:<6} {:<14} {:>10.2e} {:>10.2e} {:>10.2e} {:>10.2e}", layer_name(e.layer),
                       e.name, e.rel_rms, e.rel_rms_limit, e.max_abs, e.max_abs_limit);
    if (e.compared < e.rows) out += fmt::format("  {} of {} rows", e.compared, e.rows);
    out += e.pass() ? "\n" : "  FAIL\n";
  }
  out += "\n";
  for (const DecisionError& d : r.comparison.decisions) {
    out += fmt::format("{:<6} {:<14} {}\n", layer_name(d.layer), d.name, decision_text(d));
  }
  out += "\ncontrols, which must be found out:\n";
  for (const VerifyControl& c : r.controls) {
    out += fmt::format("  {:<34} {}\n", c.name,
                       !c.skipped.empty() ? "not run: " + c.skipped
                       : c.found.empty()  ? "NOT FOUND OUT"
                                          : "found: " + c.found);
  }
  return out + (r.pass() ? "\npass\n" : "\nFAIL\n");
}

// Why the verdict is what it is, in one line.
std::string reason(const VerifyReport& r) {
  if (!r.comparison.pass()) return r.comparison.failures.front();
  for (const VerifyControl& c : r.controls) {
    if (!c.pass()) return "the control '" + c.name + "' was not found out";
  }
  return "";
}

std::vector<int32_t> ids_of(const VerifyFlags& f, const ModelConfig& config, int64_t tokens) {
  if (f.text.empty()) return random_ids(config.vocab_size, tokens, f.seed);
  constexpr int64_t kMaxTextBytes = int64_t{1} << 28;
  const auto tokenizer = load_tokenizer(f.model.folder);
  if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json, so no --text");
  const std::string text = f.text == "-" ? read_stdin() : read_text_file(f.text, kMaxTextBytes);
  std::vector<int32_t> ids = tokenizer->encode(text, SpecialTokens::kPlain);
  if (static_cast<int64_t>(ids.size()) < tokens) {
    throw InputError(f.text + ": has " + std::to_string(ids.size()) + " tokens, want " +
                     std::to_string(tokens));
  }
  ids.resize(static_cast<size_t>(tokens));
  return ids;
}

int run_verify(const VerifyFlags& f) {
  if (f.model.attention != "auto") {
    throw UsageError("verify: --attention is the model's own; other selections have no reference");
  }
  if (f.model.precision != "exact" && f.model.precision != "native") {
    throw UsageError("verify: --precision exact or native, got '" + printable(f.model.precision) +
                     "': roundings to 8 bits that fall the other way have no tolerance");
  }
  const auto backend = f.model.make_context();
  KernelContext reference(1, Backend::kReference);
  VerifyOptions o;
  o.folder = f.model.folder;
  o.load = f.model.load_options();
  o.greedy = f.greedy;
  const CacheOptions cache = f.model.cache_options();
  o.latent_format = cache.latent_format;
  o.index_format = cache.index_format;
  Run r;
  {
    const LoadedModel model(o.folder, o.load, single_group());
    const VerifySize size = verify_size(model);
    r.tokens = f.tokens > 0 ? f.tokens : size.tokens;
    r.checkpoint_topk = model.config().index_topk;
    r.index_topk = r.checkpoint_topk;
    // A prompt no longer than top-k would let the indexer choose nothing.
    if (f.model.index_topk == 0 && r.index_topk >= r.tokens) {
      r.index_topk = std::max<int64_t>(r.tokens / 2, 1);
      o.load.index_topk = r.index_topk;
    }
    o.ids = ids_of(f, model.config(), r.tokens);
  }
  std::cerr << fmt::format("verify: back end {}, precision {}, {} tokens", f.model.backend,
                           f.model.precision, r.tokens);
  if (r.index_topk > 0) std::cerr << fmt::format(", top-k {}", r.index_topk);
  if (r.index_topk < r.checkpoint_topk) {
    std::cerr << fmt::format(" (the checkpoint has {}; --tokens {} would run it)",
                             r.checkpoint_topk, r.checkpoint_topk + 16);
  }
  std::cerr << "\n";
  const VerifyReport report = verify_backend(reference, *backend, o, [](std::string_view stage) {
    std::cerr << "verify: running " << stage << "\n";
  });
  write_stdout(f.json ? as_json(f, r, report).dump() + "\n" : as_text(report));
  f.model.explain(*backend);
  if (report.pass()) return 0;
  std::cerr << "tamis: verify failed: " << reason(report) << "\n";
  return 1;
}

}  // namespace

void add_verify(CLI::App& app, CommandBody& chosen) {
  const auto f = std::make_shared<VerifyFlags>();
  CLI::App* c = app.add_subcommand("verify", "Prove a back end against the reference");
  f->model.precision = "exact";
  f->model.add_to(*c);
  c->add_option("--text", f->text, "Run this text; default random ids. - reads standard input");
  c->add_option("--tokens", f->tokens, "Tokens to run; default what the reference does in seconds")
      ->check(CLI::Range(2, 1 << 20));
  c->add_option("--greedy", f->greedy, "Tokens of continuation")
      ->check(CLI::Range(2, 1 << 16))
      ->capture_default_str();
  c->add_option("--seed", f->seed, "Seed of the random ids")->capture_default_str();
  c->add_flag("--json", f->json, "One JSON object");
  c->footer(
      "Three faults are tried each time and must be found: the indexer's other RoPE layout, FP8\n"
      "keys without the Hadamard rotation, a cache shifted by one. Exit code 1 if the back end\n"
      "differs or a fault is not found. docs/verify.md says where the limits come from.\n\n"
      "Examples:\n"
      "  tamis verify -m models/tamis-mini\n"
      "  tamis verify -m DIR --precision native --text notes.txt --tokens 512 --json");
  c->callback([f, &chosen] { chosen = [f] { return run_verify(*f); }; });
}

}  // namespace tamis::cli
