// tamis bench: speed of prefill and decode on this machine. bench_op.cpp has the operations.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/bench_page.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "eval/throughput.h"

namespace tamis::cli {
namespace {

struct BenchFlags {
  ModelFlags model;
  ThroughputOptions options;
  std::vector<int64_t> depths{0, 512, 2048, 8192}, lengths{512, 2048};
  std::string html;
  bool json = false;
};

Json to_json(const char* what, const BenchFlags& f, const SelectionPolicy& policy,
             const Throughput& t) {
  return {{"bench", what},
          {"attention", attention_name(policy.kind)},
          {"threads", f.model.threads},
          {"precision", precision_name(f.model.runs_in)},
          {"cache", f.model.cache},
          {"depth", t.depth},
          {"tokens", t.tokens},
          {"batch", t.batch},
          {"seconds", t.seconds},
          {"tokens_per_s", t.tokens_per_second},
          {"gb_per_s", t.gigabytes_per_second},
          {"gflops", t.gigaflops}};
}

std::vector<std::string> cells(const SelectionPolicy& policy, const Throughput& t) {
  return {std::string(attention_name(policy.kind)),
          std::to_string(t.depth),
          std::to_string(t.tokens),
          std::to_string(t.batch),
          fmt::format("{:.1f}", t.gigabytes_per_second),
          fmt::format("{:.1f}", t.gigaflops),
          fmt::format("{:.1f}", t.tokens_per_second)};
}

void print_line(const std::vector<std::string>& c) {
  write_stdout(fmt::format("{:<8} {:>8} {:>8} {:>6} {:>9} {:>9} {:>12}\n", c[0], c[1], c[2], c[3],
                           c[4], c[5], c[6]));
}

// The bars compare the rows with the fastest.
void write_page(BenchPage& page, const std::string& path) {
  double best = 0;
  for (const BenchPage::Row& row : page.rows) best = std::max(best, row.bar);
  for (BenchPage::Row& row : page.rows) row.bar /= std::max(best, 1e-300);
  write_bench_page(page, path);
}

int run_bench(const BenchFlags& f, bool decode) {
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  f.model.place(*context, *model);
  ThroughputOptions o = f.options;
  o.policy = f.model.policy(model->config());
  o.cache = f.model.cache_options();
  const char* what = decode ? "decode" : "prefill";
  BenchPage page;
  page.title = std::string("tamis bench ") + what;
  page.notes = {fmt::format("{}; {} threads, {} precision, cache {}.", f.model.folder,
                            context->pool().num_threads(), precision_name(f.model.runs_in),
                            f.model.cache)};
  page.columns = {what, "depth", "tokens", "batch", "GB/s", "GFLOP/s", "tokens/s"};
  if (!f.json) print_line(page.columns);
  for (const int64_t n : decode ? f.depths : f.lengths) {
    const Throughput t =
        decode ? measure_decode(*context, *model, n, o) : measure_prefill(*context, *model, n, o);
    page.rows.push_back({cells(o.policy, t), t.tokens_per_second});
    if (f.json) {
      write_stdout(to_json(what, f, o.policy, t).dump() + "\n");
    } else {
      print_line(page.rows.back().cells);
    }
  }
  const bool writes = !f.html.empty() && model->group().rank() == 0;
  if (writes) write_page(page, f.html);
  f.model.explain(*context);
  return 0;
}

void add_common(CLI::App& c, BenchFlags& f) {
  f.model.add_to(c);
  c.add_option("--batch", f.options.batch, "Sequences at the same time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c.add_option("--repeat", f.options.repeat, "Runs; the median is printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  c.add_option("--chunk", f.options.chunk, "Prompt tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c.add_flag("--json", f.json, "One JSON object a line");
  c.add_option("--html", f.html, "Also write the results as one page");
}

}  // namespace

void add_bench(CLI::App& app, CommandBody& chosen) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed on this machine");
  bench->require_subcommand(1);
  add_bench_op(*bench, chosen);
  add_bench_serve(*bench, chosen);
  for (const bool decode : {false, true}) {
    const auto f = std::make_shared<BenchFlags>();
    CLI::App* c = decode ? bench->add_subcommand("decode", "Tokens per second at depths of context")
                         : bench->add_subcommand("prefill", "Tokens per second reading prompts");
    add_common(*c, *f);
    if (decode) {
      c->add_option("--depth", f->depths, "Depths of context, separated by commas")
          ->delimiter(',')
          ->check(CLI::Range(0, 1 << 28))
          ->capture_default_str();
      c->add_option("--tokens", f->options.tokens, "Tokens decoded in each run")
          ->check(CLI::Range(1, 1 << 20))
          ->capture_default_str();
    } else {
      c->add_option("--length", f->lengths, "Prompt lengths, separated by commas")
          ->delimiter(',')
          ->check(CLI::Range(1, 1 << 28))
          ->capture_default_str();
    }
    c->footer(decode
                  ? "Example:\n  tamis bench decode -m DIR --depth 0,8192,32768 --cache-type bf16\n"
                    "  tamis bench decode -m DIR --attention dense --json"
                  : "Example:\n  tamis bench prefill -m DIR --length 512,2048");
    c->callback([f, decode, &chosen] { chosen = [f, decode] { return run_bench(*f, decode); }; });
  }
}

}  // namespace tamis::cli
