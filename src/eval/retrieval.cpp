#include "eval/retrieval.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/error.h"

namespace tamis {

class AnswerChecker::Impl {
 public:
  Impl(KernelContext& context, const LoadedModel& model, const RetrievalOptions& options,
       int64_t tokens)
      : context_(context),
        model_(model),
        options_(options),
        selector_(make_selector(options.policy)),
        cache_(model.config(), paged(options, tokens), context.device()),
        tokens_(tokens) {}

  int64_t right_tokens(std::span<const int32_t> prompt, std::span<const int32_t> answer) {
    ids_.assign(prompt.begin(), prompt.end());
    ids_.insert(ids_.end(), answer.begin(), answer.end());
    const auto last = static_cast<int64_t>(ids_.size()) - 1;  // predicts nothing that is asked
    if (last > tokens_) throw UsageError("retrieval: the prompt is longer than was announced");
    CachedSequence sequence;
    cache_.reserve(sequence, last);
    const auto first = static_cast<int64_t>(prompt.size()) - 1;  // predicts the answer's first
    int64_t right = 0;
    bool wrong = false;
    for (int64_t begin = 0; begin < last; begin += options_.forward) {
      const int64_t end = std::min(begin + options_.forward, last);
      forward(begin, end, std::max(begin, first), sequence);
      for (int64_t t = std::max(begin, first); t < end; ++t) {
        wrong |= best(t - std::max(begin, first)) != ids_[static_cast<size_t>(t + 1)];
        right += wrong ? 0 : 1;
      }
    }
    cache_.release(sequence);
    return right;
  }

 private:
  static CacheOptions paged(const RetrievalOptions& options, int64_t tokens) {
    CacheOptions c = options.cache;
    c.pages = pages_for(tokens);
    return c;
  }

  // Tokens [begin, end); logits of those from `wanted` on.
  void forward(int64_t begin, int64_t end, int64_t wanted, const CachedSequence& sequence) {
    const auto n = static_cast<size_t>(end - begin);
    positions_.resize(n);
    sequence_.assign(n, 0);
    std::iota(positions_.begin(), positions_.end(), static_cast<int32_t>(begin));
    rows_.resize(static_cast<size_t>(std::max<int64_t>(end - wanted, 0)));
    std::iota(rows_.begin(), rows_.end(), static_cast<int32_t>(wanted - begin));
    logits_.resize(rows_.size() * static_cast<size_t>(model_.config().vocab_size));
    const KvSequence table{sequence.pages.data()};
    const bool expanded = model_.model().options().precision == Precision::kNative;
    const BatchSequence whole{0, end - begin, expanded};
    int32_t failed = -1;
    Batch b;
    b.tokens = {end - begin, sequence_.data(), positions_.data(), &table};
    b.ids = ids_.data() + begin;
    b.sequences = {&whole, 1};
    b.kv = cache_.view();
    b.logit_rows = rows_;
    b.logits = logits_.data();
    b.failed_layer = &failed;
    model_.model().forward(context_, b, *selector_, act_);
    if (failed >= 0) {
      throw InputError("layer " + std::to_string(failed) +
                       " gave a result that is not a finite number");
    }
  }

  int32_t best(int64_t row) const {
    const int64_t vocab = model_.config().vocab_size;
    const float* logits = logits_.data() + row * vocab;
    return static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
  }

  KernelContext& context_;
  const LoadedModel& model_;
  const RetrievalOptions options_;
  std::unique_ptr<Selector> selector_;
  PagedCache cache_;
  int64_t tokens_;
  Activations act_;
  std::vector<int32_t> ids_, positions_, rows_, sequence_;
  std::vector<float> logits_;
};

AnswerChecker::AnswerChecker(KernelContext& context, const LoadedModel& model,
                             const RetrievalOptions& options, int64_t tokens) {
  if (tokens > model.config().max_position) {
    throw UsageError("context: the model has " + std::to_string(model.config().max_position) +
                     " positions, got " + std::to_string(tokens));
  }
  impl_ = std::make_unique<Impl>(context, model, options, tokens);
}

AnswerChecker::~AnswerChecker() = default;

int64_t AnswerChecker::right_tokens(std::span<const int32_t> prompt,
                                    std::span<const int32_t> answer) {
  return impl_->right_tokens(prompt, answer);
}

}  // namespace tamis
