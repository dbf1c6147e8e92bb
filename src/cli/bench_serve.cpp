// tamis bench serve: load on a running server, as its clients feel it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "cli/bench_page.h"
#include "cli/commands.h"
#include "cli/support.h"
#include "server/load_generator.h"

namespace tamis::cli {
namespace {

struct BenchServeFlags {
  server::LoadOptions load;
  std::string html;
  bool json = false;
};

std::string how(const BenchServeFlags& f) {
  return f.load.rate > 0 ? fmt::format("open loop, {} requests a second", f.load.rate)
                         : fmt::format("closed loop, {} at a time", f.load.concurrency);
}

Json quantiles_json(const server::Quantiles& q) {
  return {{"mean", q.mean}, {"p50", q.p50}, {"p95", q.p95}, {"p99", q.p99}, {"max", q.max}};
}

Json to_json(const BenchServeFlags& f, const server::LoadReport& r) {
  const auto rate = [&](int64_t n) { return static_cast<double>(n) / r.seconds; };
  return {{"bench", "serve"},
          {"rate", f.load.rate},
          {"concurrency", f.load.rate > 0 ? 0 : f.load.concurrency},
          {"requests", f.load.requests},
          {"complete", r.complete},
          {"refused", r.refused},
          {"failed", r.failed},
          {"seconds", r.seconds},
          {"prompt_tokens", r.prompt_tokens},
          {"cached_tokens", r.cached_tokens},
          {"completion_tokens", r.completion_tokens},
          {"requests_per_s", rate(r.complete)},
          {"prompt_tokens_per_s", rate(r.prompt_tokens)},
          {"completion_tokens_per_s", rate(r.completion_tokens)},
          {"time_to_first_token_s", quantiles_json(r.first)},
          {"inter_token_s", quantiles_json(r.gap)},
          {"request_s", quantiles_json(r.total)}};
}

BenchPage to_page(const BenchServeFlags& f, const server::LoadReport& r) {
  BenchPage page;
  page.title = "tamis bench serve";
  page.notes = {
      fmt::format("{}:{}; {}; {} requests, {} complete, {} refused, {} failed.", f.load.host,
                  f.load.port, how(f), f.load.requests, r.complete, r.refused, r.failed),
      fmt::format(
          "{:.1f} s; {:.2f} requests/s, {:.1f} tokens/s written, {:.1f} tokens/s of prompts "
          "({} of {} tokens from the cache).",
          r.seconds, static_cast<double>(r.complete) / r.seconds,
          static_cast<double>(r.completion_tokens) / r.seconds,
          static_cast<double>(r.prompt_tokens) / r.seconds, r.cached_tokens, r.prompt_tokens)};
  page.columns = {"milliseconds", "", "mean", "p50", "p95", "p99", "max"};
  const auto add = [&](const char* name, const server::Quantiles& q) {
    BenchPage::Row row{{name, ""}, q.max > 0 ? q.p50 / q.max : 0};
    for (const double v : {q.mean, q.p50, q.p95, q.p99, q.max}) {
      row.cells.push_back(fmt::format("{:.1f}", v * 1e3));
    }
    page.rows.push_back(std::move(row));
  };
  add("to the first token", r.first);
  add("between tokens", r.gap);
  add("whole request", r.total);
  return page;
}

void print_table(const BenchPage& page) {
  for (const std::string& note : page.notes) write_stdout(note + "\n");
  const auto line = [](const std::vector<std::string>& c) {
    write_stdout(
        fmt::format("{:<20} {:>9} {:>9} {:>9} {:>9} {:>9}\n", c[0], c[2], c[3], c[4], c[5], c[6]));
  };
  line(page.columns);
  for (const BenchPage::Row& row : page.rows) line(row.cells);
}

int run_bench_serve(const BenchServeFlags& f) {
  const auto report = server::run_load(f.load, [&](int64_t done) {
    if (done % 50 == 0) std::fprintf(stderr, "%lld requests\n", static_cast<long long>(done));
  });
  const BenchPage page = to_page(f, report);
  if (f.json) {
    write_stdout(to_json(f, report).dump() + "\n");
  } else {
    print_table(page);
  }
  if (!f.html.empty()) write_bench_page(page, f.html);
  if (report.complete == 0) throw InputError("no request was answered: is a server there?");
  return 0;
}

}  // namespace

void add_bench_serve(CLI::App& bench, CommandBody& chosen) {
  const auto f = std::make_shared<BenchServeFlags>();
  CLI::App* c = bench.add_subcommand("serve", "Load on a running server: latencies, throughput");
  c->add_option("--host", f->load.host, "IPv4 address of the server")->capture_default_str();
  c->add_option("--port", f->load.port, "Its port")->capture_default_str();
  c->add_option("--api-key", f->load.api_key, "Its key, if it wants one");
  c->add_option("--requests", f->load.requests, "Requests in all")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  c->add_option("--concurrency", f->load.concurrency, "Closed loop: requests at the same time")
      ->check(CLI::Range(1, 16'000))
      ->capture_default_str();
  c->add_option("--rate", f->load.rate, "Open loop: requests a second, as they come")
      ->check(CLI::Range(0.0, 1e6));
  c->add_option("--prompt-words", f->load.prompt_words, "Words of each prompt")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  c->add_option("--shared-words", f->load.shared_words, "Words that all prompts begin with")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  c->add_option("--max-tokens", f->load.max_tokens, "Tokens of each answer")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  c->add_option("--seed", f->load.seed, "Of the prompts and the arrivals")->capture_default_str();
  c->add_option("--timeout", f->load.timeout_s, "Seconds of one request at most")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  c->add_flag("--json", f->json, "One JSON object");
  c->add_option("--html", f->html, "Also write the results as one page");
  c->footer(
      "Examples:\n"
      "  tamis serve -m models/tamis-mini &\n"
      "  tamis bench serve --concurrency 16 --requests 200\n"
      "  tamis bench serve --rate 2 --requests 200 --shared-words 1000 --html load.html");
  c->callback([f, &chosen] { chosen = [f] { return run_bench_serve(*f); }; });
}

}  // namespace tamis::cli
