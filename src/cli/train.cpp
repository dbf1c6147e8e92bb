// tamis train: the stages of a recipe.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "comm/group.h"
#include "kernels/explain.h"
#include "kernels/machine_peak.h"
#include "kernels/workloads/cuda_workloads.h"
#include "train/trainer.h"

namespace tamis::cli {
namespace {

struct TrainFlags {
  std::string config;
  std::vector<std::string> settings;
  int64_t steps = std::numeric_limits<int64_t>::max();
  int threads = 0;
  bool dry_run = false;
  std::string backend, precision;  // empty: the recipe's
  int gpus = 1;
  // Set when the command runs. It stays until main() has reported an error: MPI's world ends the
  // process when it goes.
  mutable std::unique_ptr<Group> world;
  int expert_parallel = 0, tensor_parallel = 0;  // 0: the recipe's
};

std::string time_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}m{:02}s", s / 60, s % 60);
}

// Losses by source, and the indexer's choice over all layers.
std::string validation_text(const ValidationReport& v) {
  std::string text = "validation";
  for (const SourceLoss& s : v.sources) {
    text += fmt::format("  {}: loss {:.4f}, {:.1f}% right", s.source, s.loss, 100 * s.accuracy);
  }
  IndexerHealth all;
  for (const IndexerHealth& h : v.health) all.add(h);
  if (all.selecting == 0) return text;
  const auto n = static_cast<double>(all.selecting);
  return text + fmt::format(
                    "\nindexer  kl {:.4f}  of attention {:.1f}% kept, {:.1f}% in the worst "
                    "head ({:.1f}% possible)  recall {:.1f}%",
                    all.kl / static_cast<double>(all.queries), 100 * all.mass / n,
                    100 * all.worst_mass / n, 100 * all.best_mass / n, 100 * all.recall / n);
}

// A line a step on stderr: what it lost, how fast it was, how long the stage still takes.
class StepLines {
 public:
  StepLines(const Recipe& recipe, double peak_flops) : recipe_(recipe), peak_(peak_flops) {}

  void show(const StepReport& r) {
    const Stage& stage = recipe_.stages[static_cast<size_t>(r.stage)];
    std::string line = fmt::format("{} {}/{}", stage.name, r.stage_step, stage.steps);
    if (!std::isnan(r.loss)) line += fmt::format("  loss {:.4f}", r.loss);
    if (r.mtp_loss != 0) line += fmt::format("  mtp {:.4f}", r.mtp_loss);
    if (!r.kl.empty()) {
      double kl = 0;
      for (const double layer : r.kl) kl += layer;
      line += fmt::format("  kl {:.4f}", kl / static_cast<double>(r.kl.size()));
    }
    const auto left = static_cast<double>(stage.steps - r.stage_step);
    line += fmt::format("  {:.0f} tokens/s  mfu {:.1f}%  {} left",
                        static_cast<double>(r.tokens) / r.seconds,
                        100 * r.flops / r.seconds / peak_, time_text(left * r.seconds));
    if (r.skipped) line += "  skipped: the gradient is not finite, or a spike";
    if (r.validation) line += "\n" + validation_text(*r.validation);
    std::fprintf(stderr, "%s\n", line.c_str());
  }

 private:
  const Recipe& recipe_;
  double peak_;
};

// What the peak was measured on.
std::string machine_text(KernelContext& context, int ranks) {
  if (context.device() != nullptr) {
    return fmt::format("{} {} (bf16 products)", ranks, context.device()->info().name);
  }
  return fmt::format("{} threads", context.pool().num_threads() * ranks);
}

std::string ranks_text(const Recipe& recipe, int ranks) {
  if (ranks == 1) return "";
  std::string text = fmt::format("; {} ranks", ranks);
  if (recipe.expert_parallel > 1) text += fmt::format(", {} share experts", recipe.expert_parallel);
  if (recipe.tensor_parallel > 1) {
    text += fmt::format(", {} share heads and widths", recipe.tensor_parallel);
  }
  return text;
}

std::string device_text(const Recipe& recipe, const KernelContext& context) {
  if (context.device() == nullptr) return "";
  return fmt::format("; {} on {}",
                     recipe.precision == "f32"   ? "float32"
                     : recipe.precision == "fp8" ? "other products of bf16 factors"
                                                 : "products of bf16 factors",
                     context.device()->info().name);
}

// What one rank does; rank 0 alone speaks.
void run_rank(const TrainFlags& flags, const Recipe& recipe, KernelContext& context, Group& world) {
  apply_tamis_op(context);
  Trainer trainer(recipe, context, world);
  const bool cuda = context.backend() == Backend::kCuda;
  const double peak =
      (cuda ? measure_cuda_peak(context).flops : measure_peak(context).flops) * world.size();
  if (flags.dry_run) {
    const std::string plan = trainer.plan();
    if (world.rank() > 0) return;
    write_stdout(plan + fmt::format("time        at least {}: this machine does at most {:.0f} "
                                    "GFLOP/s on {}\n",
                                    time_text(trainer.flops() / peak), peak / 1e9,
                                    machine_text(context, world.size())));
    return;
  }
  if (trainer.position().step > 0 && world.rank() == 0) {
    log_info(fmt::format("going on after step {}", trainer.position().step));
  }
  StepLines lines(trainer.recipe(), peak);
  int64_t stage = -1;
  trainer.run(flags.steps, [&](const StepReport& r) {
    if (world.rank() > 0) return;
    if (r.stage != stage) {
      stage = r.stage;
      std::fprintf(stderr, "%s%s%s\nkernels: %s\n", trainer.stage_line(stage).c_str(),
                   ranks_text(trainer.recipe(), world.size()).c_str(),
                   device_text(trainer.recipe(), context).c_str(),
                   fmt::format("{}", fmt::join(explain(context), ", ")).c_str());
    }
    lines.show(r);
  });
}

int run_train(const TrainFlags& flags) {
  std::vector<std::string> settings = flags.settings;
  if (!flags.precision.empty()) settings.push_back("run.precision=\"" + flags.precision + "\"");
  for (const auto& [key, ranks] : {std::pair{"expert_parallel", flags.expert_parallel},
                                   std::pair{"tensor_parallel", flags.tensor_parallel}}) {
    if (ranks > 0) settings.push_back(fmt::format("run.{}={}", key, ranks));
  }
  const Recipe recipe = Recipe::load(flags.config, settings);
  const Backend backend = backend_from_name(flags.backend.empty() ? recipe.backend : flags.backend);
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  flags.world = world_group();
  Group& world = *flags.world;
  if (backend != Backend::kCuda && flags.gpus > 1) {
    throw UsageError("train: --gpus needs --backend cuda; ranks on CPUs start by mpirun");
  }
  if (backend == Backend::kCuda && world.size() > 1) {
    throw UsageError(
        "train: --backend cuda trains in one process; start it without mpirun, with --gpus N for "
        "several GPUs, or take --backend cpu");
  }
  const int ranks = std::max(world.size(), flags.gpus);
  const int threads = flags.threads > 0 ? flags.threads : std::max(1, cores / ranks);
  if (flags.gpus == 1) {
    KernelContext context(threads, backend);
    run_rank(flags, recipe, context, world);
    return 0;
  }
  run_as_threads(flags.gpus, [&](Group& group) {
    KernelContext context(threads, backend, group.rank());
    run_rank(flags, recipe, context, group);
  });
  return 0;
}

}  // namespace

void add_train(CLI::App& app, CommandBody& chosen) {
  CLI::App* command = app.add_subcommand(
      "train", "Train a model: dense, then its indexer, then sparse (docs/training.md)");
  auto flags = std::make_shared<TrainFlags>();
  command->add_option("-c,--config", flags->config, "The recipe, a TOML file")->required();
  command->add_option("--set", flags->settings,
                      "Changes a key of the recipe: run.seed=3, stage.0.lr=1e-3; may be repeated");
  command
      ->add_option("--steps", flags->steps, "Stop after this many steps in all, with a checkpoint")
      ->check(CLI::PositiveNumber);
  command->add_option("--threads", flags->threads,
                      "Threads of a rank; all cores, shared by the ranks, unless given");
  command->add_option("--backend", flags->backend,
                      "cpu, cuda or reference; run.backend of the recipe unless given");
  command
      ->add_option("--gpus", flags->gpus,
                   "With --backend cuda: GPUs that compute a step's micro-batches in turn")
      ->check(CLI::PositiveNumber);
  command->add_option("--precision", flags->precision,
                      "f32, bf16 (CUDA) or fp8 (linear layers): what products round their factors "
                      "to; run.precision of the recipe unless given");
  command
      ->add_option("--expert-parallel", flags->expert_parallel,
                   "Ranks that share the experts; run.expert_parallel of the recipe unless given")
      ->check(CLI::PositiveNumber);
  command
      ->add_option(
          "--tensor-parallel", flags->tensor_parallel,
          "Ranks that share heads and the width of MLPs; run.tensor_parallel of the recipe "
          "unless given")
      ->check(CLI::PositiveNumber);
  command->add_flag("--dry-run", flags->dry_run, "Print what the run needs, and stop");
  command->footer(
      "A run that was stopped or killed goes on where its last checkpoint was: give the same "
      "command.\n\n"
      "Examples:\n"
      "  tamis train -c train.toml --dry-run\n"
      "  tamis train -c train.toml\n"
      "  tamis train -c train.toml --backend cuda\n"
      "  tamis train -c train.toml --backend cuda --gpus 4      (the same bits as one GPU)\n"
      "  mpirun -n 4 tamis train -c train.toml      (the same bits as one process)\n"
      "  mpirun -n 4 tamis train -c train.toml --expert-parallel 4      (the same bits, too)\n"
      "  tamis generate -m runs/tiny/sparse --prompt 'The '");
  command->callback([flags, &chosen] { chosen = [flags] { return run_train(*flags); }; });
}

}  // namespace tamis::cli
