// tamis plan: what a checkpoint needs on this machine and how fast it should be.
#include "eval/plan.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/crossover.h"
#include "cli/model_flags.h"
#include "cli/support.h"

namespace tamis::cli {
namespace {

struct PlanFlags {
  ModelFlags model;
  int64_t context = 4096, batch = 1;
  bool no_probe = false, measure = false, json = false;
};

struct Speed {
  int64_t depth = 0;
  AttentionKind attention = AttentionKind::kDense;
  StepCost cost;
  double predicted = 0, measured = 0;  // tokens/s; 0: not known
};

struct Plan {
  MemoryPlan memory;
  MachineLimits limits;
  std::vector<Speed> speeds;
  int64_t crossover = -1, available = 0, measured_peak = 0;
  int64_t dense_below = -1;  // of prompts on a device, measured
};

PlanOptions plan_options(const PlanFlags& f, const LoadedModel& model, const ProcessMemory& before,
                         int threads) {
  PlanOptions o;
  o.policy = f.model.policy(model.config());
  o.cache = f.model.cache_options();
  o.precision = model.model().options().precision;
  o.context = std::min(f.context, model.config().max_position);
  o.batch = f.batch;
  o.threads = threads;
  o.before_load = before;
  return o;
}

// Reads a prompt of the whole context and tells the peak; then decodes at each depth.
void measure(KernelContext& context, const LoadedModel& model, const PlanOptions& o, Plan& plan) {
  ThroughputOptions t;
  t.policy = o.policy;
  t.cache = o.cache;
  t.batch = o.batch;
  t.chunk = o.chunk;
  t.repeat = 1;
  measure_prefill(context, model, o.context, t);
  plan.measured_peak = process_memory().peak;
  t.tokens = 8;
  for (Speed& s : plan.speeds) {
    t.policy.kind = s.attention;
    s.measured = measure_decode(context, model, s.depth, t).tokens_per_second;
  }
}

// Where prompts are read faster in the absorbed form, for later runs on this GPU.
void find_crossover(KernelContext& context, const LoadedModel& model, const PlanOptions& o,
                    Plan& plan) {
  if (o.precision != Precision::kNative || o.policy.kind != AttentionKind::kSparse) return;
  ThroughputOptions t;
  t.policy = o.policy;
  t.cache = o.cache;
  t.chunk = o.chunk;
  plan.dense_below = measure_crossover(context, model, t);
  const std::string file = crossover_file();
  if (file.empty()) {
    log_warning("the crossover is not stored: set TAMIS_CACHE or HOME, or pass --dense-below");
    return;
  }
  store_crossover(file, crossover_key(context.device()->info().name, model.config()),
                  plan.dense_below);
}

void add_speeds(const LoadedModel& model, const PlanOptions& o, Plan& plan) {
  for (const int64_t depth : {0, 2048, 8192, 32768}) {
    if (depth >= model.config().max_position) continue;
    for (const auto kind : {AttentionKind::kSparse, AttentionKind::kDense}) {
      if (kind == AttentionKind::kSparse && !model.config().has_indexer()) continue;
      SelectionPolicy policy = o.policy;
      policy.kind = kind;
      Speed s{depth, kind,
              decode_cost(model.config(), model.weights(), policy, o.cache, depth, o.batch), 0, 0};
      if (plan.limits.flops > 0) {
        s.predicted =
            static_cast<double>(o.batch) / predicted_step(model, o, plan.limits, kind, depth);
      }
      plan.speeds.push_back(s);
    }
  }
}

std::string mib(int64_t bytes) {
  return fmt::format("{:>10.1f} MiB", static_cast<double>(bytes) / 1048576);
}

std::string memory_table(const Plan& plan, const PlanOptions& o) {
  const MemoryPlan& m = plan.memory;
  std::string out =
      fmt::format("Memory for a context of {} tokens, batch {}\n", o.context, o.batch);
  const auto row = [&](const char* name, int64_t bytes, const std::string& note = "") {
    out += fmt::format("  {:<22}{}  {}\n", name, mib(bytes), note);
  };
  row("weights, mapped", m.weights);
  row("embedding rows", m.embedding);
  row("cache", m.cache,
      fmt::format("a token: {} B latent + {} B indexer keys", m.latent_per_token,
                  m.index_per_token));
  row("activations", m.activations, fmt::format("a pass of {} tokens", o.chunk));
  row("kernel scratch", m.scratch, "estimate");
  row("program", m.program, "measured");
  row("peak (VmHWM)", m.peak);
  if (plan.measured_peak > 0) row("peak, measured", plan.measured_peak);
  row("available now", plan.available,
      fmt::format("largest context: {} tokens", m.largest_context));
  return out;
}

std::string speed_table(const Plan& plan) {
  std::string out;
  if (plan.limits.flops > 0) {
    out = fmt::format("\nMachine: reads {:.1f} GB/s, multiplies {:.1f} GFLOP/s\n",
                      plan.limits.read_bytes_per_second * 1e-9, plan.limits.flops * 1e-9);
  }
  out += fmt::format("\n{:>8} {:>8} {:>10} {:>10} {:>12} {:>12}\n", "depth", "attention", "MB/step",
                     "MFLOP/step", "tokens/s", "measured");
  const auto rate = [](double r) { return r > 0 ? fmt::format("{:.1f}", r) : std::string("-"); };
  for (const Speed& s : plan.speeds) {
    out +=
        fmt::format("{:>8} {:>8} {:>10.1f} {:>10.1f} {:>12} {:>12}\n", s.depth,
                    attention_name(s.attention), (s.cost.weight_bytes + s.cost.cache_bytes) * 1e-6,
                    s.cost.flops * 1e-6, rate(s.predicted), rate(s.measured));
  }
  if (plan.dense_below >= 0) {
    out += fmt::format("Prompts attend in the expanded form before position {}, measured\n",
                       plan.dense_below);
  }
  if (plan.crossover >= 0) out += fmt::format("Sparse wins from depth {}\n", plan.crossover);
  return out;
}

OrderedJson to_json(const Plan& plan, const PlanOptions& o) {
  const MemoryPlan& m = plan.memory;
  OrderedJson speeds = OrderedJson::array();
  for (const Speed& s : plan.speeds) {
    OrderedJson one{{"depth", s.depth},
                    {"attention", attention_name(s.attention)},
                    {"bytes", s.cost.weight_bytes + s.cost.cache_bytes},
                    {"flops", s.cost.flops}};
    if (s.predicted > 0) one["tokens_per_s"] = s.predicted;
    if (s.measured > 0) one["measured_tokens_per_s"] = s.measured;
    speeds.push_back(std::move(one));
  }
  OrderedJson out{{"context", o.context},
                  {"batch", o.batch},
                  {"memory",
                   {{"weights", m.weights},
                    {"embedding", m.embedding},
                    {"cache", m.cache},
                    {"latent_per_token", m.latent_per_token},
                    {"index_per_token", m.index_per_token},
                    {"activations", m.activations},
                    {"scratch", m.scratch},
                    {"program", m.program},
                    {"peak", m.peak},
                    {"available", plan.available}}},
                  {"largest_context", m.largest_context},
                  {"decode", speeds}};
  if (plan.measured_peak > 0) out["memory"]["measured_peak"] = plan.measured_peak;
  if (plan.dense_below >= 0) out["dense_below"] = plan.dense_below;
  if (plan.limits.flops > 0) {
    out["machine"] = {{"read_bytes_per_s", plan.limits.read_bytes_per_second},
                      {"flops", plan.limits.flops}};
    out["crossover_depth"] = plan.crossover < 0 ? OrderedJson() : OrderedJson(plan.crossover);
  }
  return out;
}

// What a device holds; `scratch` is what the kernels took in a measured run, 0 if nothing was run.
struct OnDevice {
  DeviceInfo device;
  DevicePlan plan;
  int64_t scratch = 0;
};

std::string device_table(const OnDevice& on, const PlanOptions& o) {
  const DeviceInfo& d = on.device;
  std::string out = fmt::format("Device {}: {} (sm_{}), {} free of {}\n", d.ordinal, d.name, d.sm,
                                mib(d.free_bytes), mib(d.total_bytes));
  out += fmt::format("Its memory for a context of {} tokens, batch {}\n", o.context, o.batch);
  const auto row = [&](const char* name, int64_t bytes, const std::string& note = "") {
    out += fmt::format("  {:<22}{}  {}\n", name, mib(bytes), note);
  };
  row("weights", on.plan.weights);
  row("cache", on.plan.cache, fmt::format("largest context: {} tokens", on.plan.largest_context));
  row("activations", on.plan.activations, fmt::format("a pass of {} tokens", o.chunk));
  if (on.scratch > 0) {
    row("kernel scratch", on.scratch, "measured");
  } else {
    out += "  kernel scratch follows the largest call; --measure tells\n";
  }
  return out;
}

OrderedJson device_json(const OnDevice& on) {
  OrderedJson out{{"ordinal", on.device.ordinal},
                  {"name", on.device.name},
                  {"sm", on.device.sm},
                  {"available", on.device.free_bytes},
                  {"weights", on.plan.weights},
                  {"cache", on.plan.cache},
                  {"activations", on.plan.activations},
                  {"largest_context", on.plan.largest_context}};
  if (on.scratch > 0) out["measured_scratch"] = on.scratch;
  return out;
}

int run_plan(const PlanFlags& f) {
  const auto context = f.model.make_context();
  const ProcessMemory before = process_memory();
  const auto model = f.model.load();
  const auto tokenizer = load_tokenizer(f.model.folder);
  const PlanOptions o = plan_options(f, *model, before, context->pool().num_threads());
  Plan plan;
  plan.available = available_memory();
  plan.memory = plan_memory(*model, o);
  // The probe takes memory of its own, so the peak is measured before it.
  Plan measured;
  if (f.measure) {
    add_speeds(*model, o, measured);
    measure(*context, *model, o, measured);
    if (context->device() != nullptr) find_crossover(*context, *model, o, plan);
  }
  plan.measured_peak = measured.measured_peak;
  if (!f.no_probe) {
    plan.limits = probe_machine(*context);
    plan.crossover = crossover_depth(*model, o, plan.limits);
  }
  add_speeds(*model, o, plan);
  for (size_t i = 0; i < measured.speeds.size(); ++i) {
    plan.speeds[i].measured = measured.speeds[i].measured;
  }
  OrderedJson json = to_json(plan, o);
  std::string memory;
  if (const DeviceContext* device = context->device(); device != nullptr) {
    const DeviceInfo& info = device->info();
    const OnDevice on{info, plan_device_memory(*model, o, info.free_bytes),
                      f.measure ? device->scratch_bytes() : 0};
    json["device"] = device_json(on);
    memory = device_table(on, o);
  } else {
    memory = memory_table(plan, o);
  }
  write_stdout(f.json ? json.dump(2) + "\n" : memory + speed_table(plan));
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, CommandBody& chosen) {
  const auto f = std::make_shared<PlanFlags>();
  CLI::App* c =
      app.add_subcommand("plan", "What a checkpoint needs here and how fast it should be");
  f->model.add_to(*c);
  c->add_option("--context", f->context, "Tokens of prompt and answer")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  c->add_option("--batch", f->batch, "Sequences at the same time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c->add_flag("--no-probe", f->no_probe, "Do not measure the machine's limits; predict no speed");
  c->add_flag("--measure", f->measure, "Run it and print what was measured beside the prediction");
  c->add_flag("--json", f->json, "Print one JSON object");
  c->footer(
      "Peak is the largest resident set of the process (VmHWM) while `tamis generate` reads a\n"
      "prompt of that context. Mapped weights count once touched. Speeds are what the machine's\n"
      "read and product rates allow, so a measured one is lower.\n\n"
      "Examples:\n"
      "  tamis plan -m DIR --context 32768 --cache-type bf16\n"
      "  tamis plan -m models/tamis-mini --measure --json");
  c->callback([f, &chosen] { chosen = [f] { return run_plan(*f); }; });
}

}  // namespace tamis::cli
