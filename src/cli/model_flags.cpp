#include "cli/model_flags.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "base/error.h"
#include "cli/crossover.h"
#include "cli/support.h"
#include "comm/launcher.h"
#include "kernels/explain.h"

namespace tamis::cli {

void ModelFlags::add_folder(CLI::App& app) {
  app.add_option("-m,--model", folder, "Model folder (Hugging Face layout)")->required();
  app.add_flag("--follow-links", follow_links,
               "Accept files that are links to outside the folder (a Hugging Face cache)");
}

void ModelFlags::add_to(CLI::App& app) {
  add_folder(app);
  app.add_option("-t,--threads", threads, "Threads; default one for each core")
      ->check(CLI::Range(1, 1024));
  app.add_option("--backend", backend, "reference, cpu or cuda")->capture_default_str();
  app.add_option(
         "--precision", precision,
         "exact: float32 on dequantised weights; int8: that, but activations rounded to 8 "
         "bits where weights are int8 or int4; native: the official FP8 path; auto: int8 for "
         "a checkpoint with such weights, else exact")
      ->capture_default_str();
  app.add_option("--attention", attention, "auto, sparse, dense, window, random or oracle")
      ->capture_default_str();
  app.add_option("--index-topk", index_topk, "Positions selected, in place of the checkpoint's")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app.add_option("--selection-seed", selection_seed, "Seed of --attention random");
  app.add_option("--cache-type", cache, "auto, f32, bf16 or fp8")->capture_default_str();
  app.add_option("--gemm", gemm,
                 "With --backend cuda --precision native, products of many rows by Tamis's own "
                 "kernels (own), or by cuBLASLt (cublaslt): faster where matrices are large, but a "
                 "token's bits then depend on the batch and the chunk it is computed in")
      ->check(CLI::IsMember({"own", "cublaslt"}))
      ->capture_default_str();
  app.add_option("--dense-below", dense_below,
                 "With --backend cuda --precision native, positions of a prompt before this one "
                 "attend in the expanded (MHA) form, those after it in the absorbed (MQA) form; "
                 "default what `tamis plan --measure` has stored for this GPU, else by counting "
                 "products")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  app.add_flag("--explain-kernels", explain_kernels,
               "Print which implementation of each operation ran");
}

std::unique_ptr<KernelContext> ModelFlags::make_context() const {
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  auto context =
      std::make_unique<KernelContext>(threads > 0 ? threads : cores, backend_from_name(backend));
  if (gemm == "cublaslt") {
    if (context->device() == nullptr) {
      throw UsageError("--gemm cublaslt: only with --backend cuda");
    }
    context->force("linear_tiles", "cuda_cublaslt");
  }
  apply_tamis_op(*context);
  return context;
}

void apply_tamis_op(KernelContext& context) {
  if (const char* forced = std::getenv("TAMIS_OP")) context.force_list(forced);
}

LoadOptions ModelFlags::load_options() const {
  LoadOptions o;
  const bool cuda = backend_from_name(backend) == Backend::kCuda;
  if (precision == "auto") {
    o.int8_if_quantised = !cuda;
  } else {
    o.model.precision = precision_from_name(precision);
  }
  if (cuda && o.model.precision == Precision::kInt8) {
    throw UsageError("--precision int8: not on --backend cuda; use exact");
  }
  if (cuda && o.model.precision == Precision::kNative) {
    o.expand_below = [this](const ModelConfig& config) {
      if (dense_below >= 0) return dense_below;
      const std::string key = crossover_key(cuda_devices().front().name, config);
      return stored_crossover(crossover_file(), key).value_or(-1);
    };
  }
  if (dense_below >= 0 && !o.expand_below) {
    throw UsageError("--dense-below: only with --backend cuda --precision native");
  }
  o.model.swap_index_rope = wrong_index_rope;
  o.index_topk = index_topk;
  o.follow_links = follow_links;
  return o;
}

std::unique_ptr<LoadedModel> ModelFlags::load(bool with_mtp) const {
  LoadOptions o = load_options();
  o.with_mtp = with_mtp;
  if (world == nullptr) world = world_group();
  auto model = std::make_unique<LoadedModel>(folder, o, world);
  runs_in = model->model().options().precision;
  return model;
}

void ModelFlags::place(KernelContext& context, const LoadedModel& model, bool show) const {
  if (context.device() == nullptr) return;
  constexpr int64_t kMiB = int64_t{1} << 20;
  Progress progress("copying weights to the GPU, MiB", device_weight_bytes(model.weights()) / kMiB,
                    show);
  int64_t shown = 0;
  model.model().place(context, [&](int64_t done, int64_t) {
    progress.add(done / kMiB - shown);
    shown = done / kMiB;
  });
  progress.finish();
}

SelectionPolicy ModelFlags::policy(const ModelConfig& config) const {
  SelectionPolicy p;
  p.topk = config.index_topk;
  p.seed = selection_seed;
  if (attention == "auto") {
    p.kind = config.has_indexer() ? AttentionKind::kSparse : AttentionKind::kDense;
    return p;
  }
  p.kind = attention_from_name(attention);
  if (p.kind == AttentionKind::kSparse && !config.has_indexer()) {
    throw UsageError("--attention sparse: " + config.model_type +
                     " has no indexer; use --attention dense");
  }
  return p;
}

CacheOptions ModelFlags::cache_options() const {
  CacheOptions o;
  if (cache == "auto") {
    if (precision == "native") {
      o.latent_format = KvFormat::kBF16;
      o.index_format = KvFormat::kFP8;
    }
  } else if (cache == "bf16") {
    o.latent_format = o.index_format = KvFormat::kBF16;
  } else if (cache == "fp8") {
    o.latent_format = o.index_format = KvFormat::kFP8;
  } else if (cache != "f32") {
    throw UsageError("--cache-type: want auto, f32, bf16 or fp8, got '" + printable(cache) + "'");
  }
  return o;
}

void ModelFlags::explain(const KernelContext& context) const {
  if (!explain_kernels || launcher_rank() > 0) return;
  for (const std::string& line : tamis::explain(context)) std::cerr << line << "\n";
}

}  // namespace tamis::cli
