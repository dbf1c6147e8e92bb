// tamis bench op: the named shapes of every operation against this machine's limits, or the GPU's.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "cli/bench_page.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "eval/op_speed.h"
#include "kernels/workloads/cuda_workloads.h"

namespace tamis::cli {
namespace {

struct BenchOpFlags {
  ModelFlags machine;  // threads and back end only
  OpSpeedOptions options;
  std::vector<std::string> ops;
  std::string shape, html;
  bool list = false, json = false;
};

// The entries of the wanted operations whose shape contains the wanted text.
template <typename W>
std::vector<W> wanted(const BenchOpFlags& f, const std::vector<W>& all) {
  std::set<std::string> known;
  std::vector<W> out;
  const std::set<std::string> ops(f.ops.begin(), f.ops.end());
  for (const W& w : all) {
    known.insert(w.op);
    const bool chosen = ops.empty() || ops.count(w.op) != 0;
    if (chosen && w.shape.find(f.shape) != std::string::npos) out.push_back(w);
  }
  for (const std::string& op : ops) {
    if (known.count(op) != 0) continue;
    throw UsageError("--op: no operation '" + printable(op) +
                     "'; known: " + fmt::format("{}", fmt::join(known, ", ")));
  }
  if (out.empty()) throw UsageError("--shape: no shape contains '" + printable(f.shape) + "'");
  return out;
}

template <typename W>
int list_shapes(const std::vector<W>& workloads, bool json) {
  for (const W& w : workloads) {
    if (json) {
      const Json line{{"op", w.op}, {"shape", w.shape}, {"bytes", w.bytes}, {"flops", w.flops}};
      write_stdout(line.dump() + "\n");
    } else {
      write_stdout(fmt::format("{:<16} {:<36} {:>10.2f} MB {:>10.2f} MFLOP\n", w.op, w.shape,
                               w.bytes * 1e-6, w.flops * 1e-6));
    }
  }
  return 0;
}

template <typename W>
std::vector<std::string> cells(const W& w, const OpSpeed& s) {
  return {w.op,
          w.shape,
          s.implementation.empty() ? "-" : s.implementation,
          fmt::format("{:.1f}", s.microseconds),
          fmt::format("{:.2f}", s.gigabytes_per_second),
          fmt::format("{:.2f}", s.gigaflops),
          fmt::format("{:.0f} % of {}", 100 * s.share, s.memory_bound ? "memory" : "arithmetic")};
}

template <typename W>
Json as_json(const W& w, const OpSpeed& s) {
  return {{"bench", "op"},
          {"op", w.op},
          {"shape", w.shape},
          {"us", s.microseconds},
          {"gb_per_s", s.gigabytes_per_second},
          {"gflops", s.gigaflops},
          {"limit", s.memory_bound ? "memory" : "arithmetic"},
          {"share", s.share}};
}

const std::vector<std::string>& columns() {
  static const std::vector<std::string> names{"operation", "shape",   "code",          "us",
                                              "GB/s",      "GFLOP/s", "share of limit"};
  return names;
}

std::string line(const std::vector<std::string>& c) {
  return fmt::format("{:<15} {:<34} {:<10} {:>10} {:>8} {:>8}  {}\n", c[0], c[1], c[2], c[3], c[4],
                     c[5], c[6]);
}

// How one call of a workload took `us` against the limits of the device.
OpSpeed cuda_speed(const CudaWorkload& w, const CudaPeak& peak, double us) {
  OpSpeed s;
  s.microseconds = us;
  s.gigabytes_per_second = w.bytes / us * 1e-3;
  s.gigaflops = w.flops / us * 1e-3;
  const double memory = w.bytes / peak.bytes_per_second, products = w.flops / peak.flops;
  s.memory_bound = memory > products;
  s.share = std::max(memory, products) / us * 1e6;
  return s;
}

// The shapes of a GPU that f asks for, timed on it.
int run_cuda(const BenchOpFlags& f, KernelContext& context) {
  const std::vector<CudaWorkload> workloads = wanted(f, cuda_workloads());
  const CudaPeak peak = measure_cuda_peak(context);
  const std::string& gpu = context.device()->info().name;
  BenchPage page;
  page.title = "tamis bench op --backend cuda";
  page.columns = columns();
  page.notes = {
      fmt::format("{}; limits measured at the start: copying memory {:.0f} GB/s, bf16 products by "
                  "mma.sync {:.0f} GFLOP/s. Operands cold.",
                  gpu, peak.bytes_per_second * 1e-9, peak.flops * 1e-9)};
  if (f.json) {
    const Json machine{{"bench", "machine"},
                       {"gpu", gpu},
                       {"copy_gb_per_s", peak.bytes_per_second * 1e-9},
                       {"mma_gflops", peak.flops * 1e-9}};
    write_stdout(machine.dump() + "\n");
  } else {
    write_stdout(page.notes[0] + "\n\n" + line(page.columns));
  }
  for (const CudaWorkload& w : workloads) {
    const OpSpeed s = cuda_speed(w, peak, measure_cuda(context, w));
    page.rows.push_back({cells(w, s), s.share});
    Json json = as_json(w, s);
    json["gpu"] = gpu;
    write_stdout(f.json ? json.dump() + "\n" : line(page.rows.back().cells));
  }
  if (!f.html.empty()) write_bench_page(page, f.html);
  return 0;
}

int run_bench_op(const BenchOpFlags& f) {
  if (f.list && backend_from_name(f.machine.backend) == Backend::kCuda) {
    return list_shapes(wanted(f, cuda_workloads()), f.json);
  }
  if (f.list) return list_shapes(wanted(f, all_workloads()), f.json);
  const auto context = f.machine.make_context();
  if (context->device() != nullptr) return run_cuda(f, *context);
  const std::vector<Workload> workloads = wanted(f, all_workloads());
  const int threads = context->pool().num_threads();
  const MachinePeak peak = measure_peak(*context);
  BenchPage page;
  page.title = "tamis bench op";
  page.columns = columns();
  page.notes = {
      fmt::format("{} threads; limits measured at the start: reading memory {:.1f} GB/s, "
                  "multiply-add {:.1f} GFLOP/s. Operands {}.",
                  threads, peak.read_bytes_per_second * 1e-9, peak.flops * 1e-9,
                  f.options.warm ? "warm" : "cold")};
  if (f.json) {
    const Json machine{{"bench", "machine"},
                       {"threads", threads},
                       {"read_gb_per_s", peak.read_bytes_per_second * 1e-9},
                       {"fma_gflops", peak.flops * 1e-9}};
    write_stdout(machine.dump() + "\n");
  } else {
    write_stdout(page.notes[0] + "\n\n" + line(page.columns));
  }
  for (const Workload& w : workloads) {
    const OpSpeed s = measure_op(*context, w, peak, f.options);
    page.rows.push_back({cells(w, s), s.share});
    Json json = as_json(w, s);
    json["implementation"] = s.implementation;
    json["threads"] = threads;
    write_stdout(f.json ? json.dump() + "\n" : line(page.rows.back().cells));
  }
  if (!f.html.empty()) write_bench_page(page, f.html);
  return 0;
}

}  // namespace

void add_bench_op(CLI::App& bench, CommandBody& chosen) {
  const auto f = std::make_shared<BenchOpFlags>();
  CLI::App* c = bench.add_subcommand("op", "Operations alone, against this machine's limits");
  c->add_option("--op", f->ops, "Only these operations, separated by commas")->delimiter(',');
  c->add_option("--shape", f->shape, "Only shapes whose name contains this");
  c->add_flag("--list", f->list, "Show the shapes, measure nothing");
  c->add_option("-t,--threads", f->machine.threads, "Threads (default: one for each core)")
      ->check(CLI::Range(1, 1024));
  c->add_option("--backend", f->machine.backend, "reference, cpu or cuda")->capture_default_str();
  c->add_option("--seconds", f->options.seconds, "Time for each shape at least")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  c->add_option("--repeat", f->options.repeat, "Runs of each shape at least; the median is printed")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  c->add_flag("--warm", f->options.warm, "Leave operands in the caches from one run to the next");
  c->add_flag("--json", f->json, "One JSON object a line, the machine's limits first");
  c->add_option("--html", f->html, "Also write the results as one page");
  c->footer(
      "Shapes are those of bench/workloads.h: v32 is DeepSeek-V3.2, mini the bundled model.\n"
      "The share is the time that memory or arithmetic alone would take over the time taken.\n"
      "cuda has shapes of its own (--list shows them); --seconds, --repeat and --warm are the "
      "CPU's.\n\n"
      "Examples:\n"
      "  tamis bench op --shape v32 --op mla_sparse,indexer_select\n"
      "  tamis bench op --html op.html\n"
      "  tamis bench op --backend cuda --op mla_sparse,topk --json\n"
      "  TAMIS_OP=mla_sparse:ref tamis bench op --op mla_sparse --shape mini");
  c->callback([f, &chosen] { chosen = [f] { return run_bench_op(*f); }; });
}

}  // namespace tamis::cli
