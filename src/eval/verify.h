// Proves a back end against the reference on a user's own weights: the same tokens through both,
// compared layer by layer; then runs that are wrong on purpose, which must be found out.
//
// docs/verify.md says what is compared and where the limits come from.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "engine/loaded_model.h"
#include "eval/verify_compare.h"

namespace tamis {

struct VerifyOptions {
  std::string folder;
  LoadOptions load;
  std::vector<int32_t> ids;
  int64_t greedy = 8;  // tokens of continuation, at least 2: they read the cache
  KvFormat latent_format = KvFormat::kF32;
  KvFormat index_format = KvFormat::kF32;
};

// A run with a known fault.
struct VerifyControl {
  std::string name;
  std::string skipped;  // why it does not apply to this model; empty if it ran
  std::string found;    // the first difference; empty if the fault went unnoticed
  bool pass() const { return !skipped.empty() || !found.empty(); }
};

struct VerifyReport {
  VerifyComparison comparison;
  std::vector<VerifyControl> controls;
  bool pass() const;
};

// `stage` is told what begins. InputError for a folder, ids or weights that cannot be run.
VerifyReport verify_backend(KernelContext& reference, KernelContext& backend,
                            const VerifyOptions& options,
                            FunctionRef<void(std::string_view)> stage);

// How many tokens to run, and the top-k that makes the indexer choose among them: the checkpoint's,
// or less where the reference, in plain loops, would take minutes for a longer prompt.
struct VerifySize {
  int64_t tokens = 0;
  int64_t index_topk = 0;  // 0: no indexer
};
VerifySize verify_size(const LoadedModel& model);

// `count` ids of the vocabulary, a function of the seed alone.
std::vector<int32_t> random_ids(int64_t vocab_size, int64_t count, uint64_t seed);

}  // namespace tamis
