#include "eval/verify.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "eval/throughput.h"
#include "kernels/indexer_select/indexer_select.h"
#include "kernels/memory.h"

namespace tamis {
namespace {

// Multiplications that the reference may spend on the prompt: some ten seconds of plain loops.
constexpr double kReferenceBudget = 5e9;
constexpr int64_t kFewestTokens = 24, kTokensWithoutIndexer = 96;

// Gives the model the selection of another run, so that one choice between equals does not hide
// what follows; keeps what the back end would have selected itself.
class ForcedSelector final : public Selector {
 public:
  ForcedSelector(const Trace& want, int64_t topk)
      : want_(want), topk_(topk), prompt_(want.at("input_ids").shape[0]) {}

  bool uses_indexer() const override { return true; }
  int64_t topk() const override { return topk_; }

  void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
              uint8_t* has_nan) const override {
    indexer_select(context, {in.indexer, topk_, indices, has_nan});
    std::vector<int32_t> rows(static_cast<size_t>(in.tokens.num_tokens * topk_));
    const auto bytes = static_cast<int64_t>(rows.size() * sizeof(int32_t));
    get(context, rows.data(), indices, bytes);
    std::vector<int32_t>& chosen = chosen_[in.layer];
    for (int64_t t = 0; t < in.tokens.num_tokens; ++t) {
      int32_t* row = rows.data() + t * topk_;
      const int64_t position = in.tokens.position[t];
      if (position < prompt_) chosen.insert(chosen.end(), row, row + topk_);
      force(in.layer, position, row);
    }
    put(context, indices, rows.data(), bytes);
  }

  const Selections& chosen() const { return chosen_; }

 private:
  void force(int64_t layer, int64_t position, int32_t* row) const {
    const std::string l = std::to_string(layer);
    const bool prompt = position < prompt_;
    const TraceTensor& t = want_.at((prompt ? "topk." : "greedy.topk.") + l);
    const int64_t from = (prompt ? position : position - prompt_) * topk_;
    std::copy_n(t.ints.begin() + from, topk_, row);
  }

  const Trace& want_;
  int64_t topk_, prompt_;
  mutable Selections chosen_;
};

class Verifier {
 public:
  Verifier(KernelContext& backend, const VerifyOptions& options)
      : backend_(backend), options_(options) {}

  TraceOptions trace_options(KvFormat index_format) const {
    TraceOptions t;
    t.greedy = options_.greedy;
    t.latent_format = options_.latent_format;
    t.index_format = index_format;
    return t;
  }

  // The back end under `want`'s selection, held against it.
  VerifyComparison compare(const LoadedModel& model, const Trace& want, TraceOptions t) {
    const ModelConfig& config = model.config();
    ForcedSelector forced(want, std::max<int64_t>(config.index_topk, 1));
    if (config.has_indexer()) t.selector = &forced;
    const Trace got = record_trace(backend_, model, options_.ids, t);
    const bool native = model.model().options().precision == Precision::kNative;
    const bool fp8 = t.index_format == KvFormat::kFP8;
    return compare_traces(want, got, forced.chosen(), config, model.weights(),
                          limits_of(config, native, fp8));
  }

  VerifyControl wrong_rope(const LoadedModel& model, const Trace& want) {
    VerifyControl c{"wrong indexer RoPE layout", missing_indexer(model), ""};
    if (!c.skipped.empty()) return c;
    LoadOptions load = options_.load;
    load.model.swap_index_rope = true;
    return run(std::move(c), load, want, trace_options(options_.index_format));
  }

  // Keys are not rotated, queries are. Only FP8 keys are rotated at all.
  VerifyControl no_hadamard(const LoadedModel& model, const Trace& want) {
    VerifyControl c{"no Hadamard rotation of FP8 keys", missing_indexer(model), ""};
    const int64_t dim = model.config().index_dim;
    if (c.skipped.empty() && (dim > 128 || (dim & (dim - 1)) != 0)) {
      c.skipped = "there are no FP8 keys of " + std::to_string(dim) + " values";
    }
    if (!c.skipped.empty()) return c;
    LoadOptions load = options_.load;
    load.model.no_hadamard = true;
    const TraceOptions fp8 = trace_options(KvFormat::kFP8);
    if (options_.index_format == KvFormat::kFP8) return run(std::move(c), load, want, fp8);
    // The reference ran with other keys: the right run to compare with is the back end's own.
    return run(std::move(c), load, record_trace(backend_, model, options_.ids, fp8), fp8);
  }

  VerifyControl shifted_cache(const Trace& want) {
    VerifyControl c{"cache shifted by one position", "", ""};
    TraceOptions t = trace_options(options_.index_format);
    t.shift_cache = true;
    return run(std::move(c), options_.load, want, t);
  }

 private:
  static std::string missing_indexer(const LoadedModel& model) {
    const auto& layers = model.config().layers;
    const bool any = std::any_of(layers.begin(), layers.end(), [](const LayerConfig& l) {
      return l.indexer == IndexerKind::kOwn;
    });
    return any ? "" : "the model has no indexer";
  }

  VerifyControl run(VerifyControl c, const LoadOptions& load, const Trace& want,
                    const TraceOptions& t) {
    const LoadedModel model(options_.folder, load, single_group());
    const VerifyComparison r = compare(model, want, t);
    if (!r.pass()) c.found = r.failures.front();
    return c;
  }

  KernelContext& backend_;
  const VerifyOptions& options_;
};

}  // namespace

bool VerifyReport::pass() const {
  return comparison.pass() && std::all_of(controls.begin(), controls.end(),
                                          [](const VerifyControl& c) { return c.pass(); });
}

VerifyReport verify_backend(KernelContext& reference, KernelContext& backend,
                            const VerifyOptions& options,
                            FunctionRef<void(std::string_view)> stage) {
  if (options.greedy < 2) throw UsageError("verify: want at least 2 greedy tokens");
  const LoadedModel model(options.folder, options.load, single_group());
  Verifier v(backend, options);
  const TraceOptions t = v.trace_options(options.index_format);
  stage("the reference");
  const Trace want = record_trace(reference, model, options.ids, t);
  VerifyReport report;
  stage("the back end");
  report.comparison = v.compare(model, want, t);
  stage("the back end, wrong on purpose");
  report.controls.push_back(v.wrong_rope(model, want));
  report.controls.push_back(v.no_hadamard(model, want));
  report.controls.push_back(v.shifted_cache(want));
  return report;
}

VerifySize verify_size(const LoadedModel& model) {
  const ModelConfig& c = model.config();
  SelectionPolicy policy;
  policy.topk = c.index_topk;
  const StepCost one = decode_cost(c, model.weights(), policy, {}, 0, 1);
  const auto affordable =
      std::max(kFewestTokens, static_cast<int64_t>(kReferenceBudget / (one.flops / 2)));
  // The continuation must fit too.
  const int64_t most = std::min(affordable, c.max_position - 64);
  if (!c.has_indexer()) return {std::min(kTokensWithoutIndexer, most), 0};
  const int64_t wanted = c.index_topk + std::max<int64_t>(c.index_topk / 4, 16);
  if (wanted <= most) return {wanted, c.index_topk};
  return {most, std::max<int64_t>(most / 2, 1)};
}

std::vector<int32_t> random_ids(int64_t vocab_size, int64_t count, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    seed += 0x9E3779B97F4A7C15ULL;  // splitmix64
    uint64_t x = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    ids.push_back(static_cast<int32_t>((x ^ (x >> 31)) % static_cast<uint64_t>(vocab_size)));
  }
  return ids;
}

}  // namespace tamis
