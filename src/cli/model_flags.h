// Flags that every command with a model has: -m, --threads, --backend, --precision, attention.
#pragma once

#include <memory>
#include <string>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "kernels/context.h"

namespace CLI {
class App;
}

namespace tamis::cli {

struct ModelFlags {
  std::string folder;
  int threads = 0;  // 0: one for each core
  std::string backend = "cpu";
  std::string precision = "auto";  // set before add_to by commands with another default
  std::string attention = "auto";
  std::string cache = "auto";
  std::string gemm = "own";
  int64_t index_topk = 0;
  int64_t dense_below = -1;  // --dense-below; -1: not given
  uint64_t selection_seed = 0;
  bool follow_links = false;
  bool explain_kernels = false;
  mutable std::shared_ptr<Group> world;           // set by load()
  mutable Precision runs_in = Precision::kExact;  // set by load(): what "auto" came to
  bool wrong_index_rope = false;  // a control of `eval perplexity`; no flag of the others

  void add_folder(CLI::App& app);  // -m alone
  void add_to(CLI::App& app);      // all of them

  // The back end, with TAMIS_OP applied.
  std::unique_ptr<KernelContext> make_context() const;
  LoadOptions load_options() const;
  // With this process's ranks (mpirun), or the group of one. The ranks stay in `world` until the
  // flags go: an error must reach main(), which reports it, before the group of a rank ends.
  std::unique_ptr<LoadedModel> load(bool with_mtp = false) const;
  // Copies the weights to the context's device and shows how far it is. Nothing on the CPU.
  void place(KernelContext& context, const LoadedModel& model, bool show = true) const;
  // "auto" is sparse where the model has an indexer and dense where not; asking for sparse
  // attention of a model without an indexer is a UsageError.
  SelectionPolicy policy(const ModelConfig& config) const;
  // pages is left 0. "auto" is f32 in exact precision, bf16 with FP8 keys in native precision.
  CacheOptions cache_options() const;
  // --explain-kernels: which implementation of each operation ran, on stderr.
  void explain(const KernelContext& context) const;
};

// Forces the implementations that the environment's TAMIS_OP names.
void apply_tamis_op(KernelContext& context);

}  // namespace tamis::cli
