#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "base/error.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace tamis {
namespace {

// The ranges of left context that are reported apart: quality of a sparse model can hide a loss at
// long range behind the many tokens at short range.
std::vector<PositionLoss> position_ranges(int64_t context) {
  std::vector<PositionLoss> ranges;
  for (int64_t first = 1, end = 256; first < context; first = end, end *= 2) {
    ranges.push_back({first, end - 1, {}});
  }
  return ranges;
}

std::string failure(const ModelConfig& config, int32_t layer, int64_t chunk) {
  const std::string where = layer == config.num_layers() ? "the final norm or the head"
                                                         : "layer " + std::to_string(layer);
  return where + " gave a result that is not a finite number, in chunk " + std::to_string(chunk);
}

class Scorer {
 public:
  Scorer(KernelContext& context, const LoadedModel& model, const PerplexityOptions& options)
      : context_(context),
        model_(model),
        options_(options),
        selector_(make_selector(options.policy)),
        cache_(model.config(), paged(options), context.device()) {
    result_.by_position = position_ranges(options.context);
  }

  // One chunk from position 0. Its last token predicts nothing that is scored.
  void score(std::span<const int32_t> ids, int64_t document, int64_t first,
             FunctionRef<void(int64_t)> progress) {
    CachedSequence sequence;
    cache_.reserve(sequence, static_cast<int64_t>(ids.size()));
    result_.chunks.push_back(
        {{}, std::vector<MeanLoss>(result_.by_position.size()), document, first});
    result_.read_tokens += static_cast<int64_t>(ids.size());
    const auto predictions = static_cast<int64_t>(ids.size()) - 1;
    for (int64_t begin = 0; begin < predictions; begin += options_.forward) {
      const int64_t count = std::min(options_.forward, predictions - begin);
      forward(ids.data() + begin, begin, count, sequence);
      add_losses(ids.data() + begin + 1, begin, count);
      progress(count);
    }
    cache_.release(sequence);
  }

  PerplexityResult take() { return std::move(result_); }

 private:
  static CacheOptions paged(const PerplexityOptions& options) {
    CacheOptions c = options.cache;
    c.pages = pages_for(options.context);
    return c;
  }

  void forward(const int32_t* ids, int64_t begin, int64_t count, const CachedSequence& sequence) {
    const auto n = static_cast<size_t>(count);
    positions_.resize(n);
    rows_.resize(n);
    sequence_.assign(n, 0);
    std::iota(positions_.begin(), positions_.end(), static_cast<int32_t>(begin));
    std::iota(rows_.begin(), rows_.end(), 0);
    logits_.resize(n * static_cast<size_t>(model_.config().vocab_size));
    const KvSequence table{sequence.pages.data()};
    const bool expanded = model_.model().options().precision == Precision::kNative;
    const BatchSequence whole{0, count, expanded};
    int32_t failed = -1;
    Batch b;
    b.tokens = {count, sequence_.data(), positions_.data(), &table};
    b.ids = ids;
    b.sequences = {&whole, 1};
    b.kv = cache_.view();
    b.logit_rows = rows_;
    b.logits = logits_.data();
    b.failed_layer = &failed;
    model_.model().forward(context_, b, *selector_, act_);
    if (failed >= 0) {
      throw InputError(
          failure(model_.config(), failed, static_cast<int64_t>(result_.chunks.size()) - 1));
    }
  }

  void add_losses(const int32_t* targets, int64_t begin, int64_t count) {
    losses_.resize(static_cast<size_t>(count));
    cross_entropy(context_.device() == nullptr ? context_ : host_,
                  {logits_.data(), targets, count, model_.config().vocab_size, losses_.data()});
    size_t range = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double loss = losses_[static_cast<size_t>(i)];
      while (result_.by_position[range].last < begin + i + 1) ++range;
      for (MeanLoss* m :
           {&result_.total, &result_.chunks.back().loss, &result_.by_position[range].loss,
            &result_.chunks.back().by_position[range]}) {
        ++m->tokens;
        m->sum += loss;
      }
    }
  }

  KernelContext& context_;
  KernelContext host_{
      context_.pool().num_threads()};  // the losses of a device's logits, which are on the host
  const LoadedModel& model_;
  const PerplexityOptions& options_;
  std::unique_ptr<Selector> selector_;
  PagedCache cache_;
  Activations act_;
  PerplexityResult result_;
  std::vector<int32_t> positions_, rows_, sequence_;
  std::vector<float> logits_;
  std::vector<double> losses_;
};

void check(const ModelConfig& config, std::span<const std::span<const int32_t>> documents,
           const PerplexityOptions& options) {
  if (options.context < 2 || options.context > config.max_position) {
    throw UsageError("context: want 2 to " + std::to_string(config.max_position) +
                     " tokens (the model's maximum), got " + std::to_string(options.context));
  }
  if (options.forward < 1) throw UsageError("forward: want at least 1 token");
  size_t longest = 0;
  for (const std::span<const int32_t> ids : documents) {
    longest = std::max(longest, ids.size());
    for (const int32_t id : ids) {  // the last token of a chunk is a target only
      if (id < 0 || id >= config.vocab_size) {
        throw InputError("token id " + std::to_string(id) + ": the vocabulary has " +
                         std::to_string(config.vocab_size));
      }
    }
  }
  if (longest < 2) {
    throw InputError("the text has " + std::to_string(longest) +
                     " tokens: want at least 2, as the first is not scored");
  }
}

PerplexityResult measure(KernelContext& context, const LoadedModel& model,
                         std::span<const std::span<const int32_t>> documents,
                         const PerplexityOptions& options, FunctionRef<void(int64_t)> progress) {
  check(model.config(), documents, options);
  Scorer scorer(context, model, options);
  const auto length = static_cast<size_t>(options.context);
  int64_t done = 0;
  for (size_t d = 0; d < documents.size(); ++d) {
    const std::span<const int32_t> ids = documents[d];
    for (size_t begin = 0; begin < ids.size(); begin += length) {
      if (options.limit_chunks > 0 && done == options.limit_chunks) return scorer.take();
      const size_t count = std::min(length, ids.size() - begin);
      if (count < 2 && documents.size() > 1) continue;
      scorer.score(ids.subspan(begin, count), static_cast<int64_t>(d), static_cast<int64_t>(begin),
                   progress);
      ++done;
    }
  }
  return scorer.take();
}

}  // namespace

double PerplexityResult::perplexity() const { return std::exp(total.mean()); }

double PerplexityResult::bits_per_byte(int64_t bytes) const {
  return bytes > 0 ? total.sum / std::log(2.0) / static_cast<double>(bytes) : 0;
}

PerplexityResult measure_perplexity(KernelContext& context, const LoadedModel& model,
                                    std::span<const int32_t> ids, const PerplexityOptions& options,
                                    FunctionRef<void(int64_t)> progress) {
  return measure(context, model, {&ids, 1}, options, progress);
}

PerplexityResult measure_perplexity(KernelContext& context, const LoadedModel& model,
                                    std::span<const std::vector<int32_t>> documents,
                                    const PerplexityOptions& options,
                                    FunctionRef<void(int64_t)> progress) {
  const std::vector<std::span<const int32_t>> list(documents.begin(), documents.end());
  return measure(context, model, list, options, progress);
}

}  // namespace tamis
