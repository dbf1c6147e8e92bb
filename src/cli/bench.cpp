// tamis bench: speed of prefill and decode on this machine.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "eval/throughput.h"

namespace tamis::cli {
namespace {

struct Flags {
  ModelFlags model;
  ThroughputOptions options;
  std::vector<int64_t> depths{0, 512, 2048, 8192}, lengths{512, 2048};
  bool json = false;
};

Json to_json(const char* what, const Flags& f, const SelectionPolicy& policy, const Throughput& t) {
  return {{"bench", what},
          {"attention", attention_name(policy.kind)},
          {"threads", f.model.threads},
          {"cache", f.model.cache},
          {"depth", t.depth},
          {"tokens", t.tokens},
          {"batch", t.batch},
          {"seconds", t.seconds},
          {"tokens_per_s", t.tokens_per_second},
          {"gb_per_s", t.gigabytes_per_second},
          {"gflops", t.gigaflops}};
}

int run(const Flags& f, bool decode) {
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  ThroughputOptions o = f.options;
  o.policy = f.model.policy(model->config());
  o.cache = f.model.cache_options();
  if (!f.json) {
    std::printf("%-8s %8s %8s %6s %12s %9s %9s\n", decode ? "decode" : "prefill", "depth", "tokens",
                "batch", "tokens/s", "GB/s", "GFLOP/s");
  }
  for (const int64_t n : decode ? f.depths : f.lengths) {
    const Throughput t =
        decode ? measure_decode(*context, *model, n, o) : measure_prefill(*context, *model, n, o);
    if (f.json) {
      write_stdout(to_json(decode ? "decode" : "prefill", f, o.policy, t).dump() + "\n");
    } else {
      std::printf("%-8s %8lld %8lld %6lld %12.1f %9.1f %9.1f\n",
                  std::string(attention_name(o.policy.kind)).c_str(),
                  static_cast<long long>(t.depth), static_cast<long long>(t.tokens),
                  static_cast<long long>(t.batch), t.tokens_per_second, t.gigabytes_per_second,
                  t.gigaflops);
      std::fflush(stdout);
    }
  }
  f.model.explain(*context);
  return 0;
}

void add_common(CLI::App& c, Flags& f) {
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
}

}  // namespace

void add_bench(CLI::App& app, CommandBody& chosen) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed on this machine");
  bench->require_subcommand(1);
  for (const bool decode : {false, true}) {
    const auto f = std::make_shared<Flags>();
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
    c->callback([f, decode, &chosen] { chosen = [f, decode] { return run(*f, decode); }; });
  }
}

}  // namespace tamis::cli
