#include "engine/prompt_scorer.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace tamis {
namespace {

// Rows of logits in memory at once: 64 of the largest vocabulary are 33 MB.
constexpr int64_t kChunk = 64;

CacheOptions cache_for(const EngineOptions& options, const ModelConfig& config) {
  CacheOptions c = options.cache;
  const int64_t most = config.max_position;
  c.pages = pages_for(options.max_context > 0 ? std::min(options.max_context, most) : most);
  return c;
}

}  // namespace

PromptScorer::PromptScorer(const LoadedModel& model, KernelContext& context,
                           const EngineOptions& options)
    : model_(model),
      context_(context),
      selector_(make_selector(options.policy)),
      cache_(model.config(), cache_for(options, model.config()), context.device()),
      max_context_(cache_.total_pages() * kPageTokens) {}

PromptScorer::~PromptScorer() { stop(); }

void PromptScorer::stop() {
  cache_.release(sequence_);
  sequence_ = {};
  busy_ = false;
}

void PromptScorer::start(std::vector<int32_t> prompt, int64_t top_logprobs) {
  const auto length = static_cast<int64_t>(prompt.size());
  if (length == 0) throw InputError("the prompt is empty: want at least one token");
  if (length > max_context_) {
    throw InputError("the prompt has " + std::to_string(length) + " tokens, the context holds " +
                     std::to_string(max_context_));
  }
  for (const int32_t id : prompt) {
    if (id < 0 || id >= model_.config().vocab_size) {
      throw InputError("prompt: token id " + std::to_string(id) + ", the vocabulary has " +
                       std::to_string(model_.config().vocab_size));
    }
  }
  stop();
  prompt_ = std::move(prompt);
  top_ = top_logprobs;
  tokens_.clear();
  busy_ = true;
}

bool PromptScorer::step() {
  if (!busy_) return true;
  const auto length = static_cast<int64_t>(prompt_.size());
  const int64_t begin = sequence_.length, n = std::min(kChunk, length - begin);
  if (!cache_.reserve(sequence_, n)) throw DeviceError("prompt scorer: no page is free");
  run_chunk(begin, n);
  sequence_.length += n;
  const int64_t vocab = model_.config().vocab_size;
  for (int64_t i = 0; i < n && begin + i + 1 < length; ++i) {
    SampledToken token;
    token.id = prompt_[static_cast<size_t>(begin + i + 1)];
    report_logprobs(logits_.data() + i * vocab, vocab, top_, token);
    tokens_.push_back(std::move(token));
  }
  last_rows_ = n;
  if (begin + n < length) return false;
  stop();
  return true;
}

void PromptScorer::run_chunk(int64_t begin, int64_t n) {
  std::vector<int32_t> position(static_cast<size_t>(n)), sequence(static_cast<size_t>(n), 0),
      rows(static_cast<size_t>(n)), failed(1, -1);
  std::iota(position.begin(), position.end(), static_cast<int32_t>(begin));
  std::iota(rows.begin(), rows.end(), 0);
  logits_.resize(static_cast<size_t>(n * model_.config().vocab_size));
  const std::vector<KvSequence> tables = {{sequence_.pages.data()}};
  const bool expanded = model_.model().options().precision == Precision::kNative;
  const std::vector<BatchSequence> slices = {{0, n, expanded}};
  Batch b;
  b.tokens = {n, sequence.data(), position.data(), tables.data()};
  b.ids = prompt_.data() + begin;
  b.sequences = slices;
  b.kv = cache_.view();
  b.logit_rows = rows;
  b.logits = logits_.data();
  b.failed_layer = failed.data();
  model_.model().forward(context_, b, *selector_, act_);
  if (failed[0] >= 0) {
    stop();
    throw InputError("layer " + std::to_string(failed[0]) +
                     " gave a result that is not a finite number");
  }
}

SampledToken PromptScorer::next(const SamplingParams& params) const {
  const int64_t vocab = model_.config().vocab_size;
  Sampler sampler(params, vocab, prompt_);
  SampledToken token;
  Sampler::Scratch scratch;
  sampler.sample(logits_.data() + (last_rows_ - 1) * vocab, {}, scratch, token);
  return token;
}

}  // namespace tamis
