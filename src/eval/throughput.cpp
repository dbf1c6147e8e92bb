#include "eval/throughput.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace tamis {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

float uniform(uint64_t& state) {  // in [-1.7, 1.7): variance 1
  state = mix(state);
  return (static_cast<float>(state >> 40) * 0x1p-23F - 1.0F) * 1.732F;
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

void fill_random(KvView view, const CachedSequence& s, int64_t tokens, bool ue8m0, uint64_t seed) {
  const KvSequence seq{s.pages.data()};
  std::vector<float> row(1 << 14);
  for (const KvLayer& kv : view) {
    const KvLayout& l = kv.layout;
    for (int64_t p = 0; p < tokens; ++p) {
      for (int64_t i = 0; i < l.kv_lora + l.rope; ++i) {
        row[static_cast<size_t>(i)] = uniform(seed);
      }
      write_latent(kv, seq, p, row.data(), row.data() + l.kv_lora);
      if (l.index_dim == 0) continue;
      for (int64_t i = 0; i < l.index_dim; ++i) row[static_cast<size_t>(i)] = uniform(seed);
      write_index_key(kv, seq, p, row.data(), ue8m0);
    }
  }
}

// The sequences of a measurement and the buffers of a forward pass over them.
class Bench {
 public:
  Bench(KernelContext& context, const LoadedModel& model, const ThroughputOptions& options,
        int64_t max_tokens)
      : context_(context),
        model_(model),
        selector_(make_selector(options.policy)),
        cache_(model.config(), paged(options, max_tokens), context.device()),
        sequences_(static_cast<size_t>(options.batch)),
        seed_(options.seed),
        expand_below_(options.expand_below) {
    for (CachedSequence& s : sequences_) {
      if (!cache_.reserve(s, max_tokens)) throw UsageError("bench: the cache is too small");
    }
  }

  void set_depth(int64_t depth) {
    for (CachedSequence& s : sequences_) s.length = depth;
  }

  void fill(int64_t depth) {
    uint64_t seed = seed_;
    const PagedCache::HostPages pages = cache_.host_pages();
    for (const CachedSequence& s : sequences_) {
      fill_random(pages.layers, s, depth, model_.config().ue8m0_scales, ++seed);
    }
    cache_.write_back(pages);
  }

  // One forward pass of `tokens` random ids for each sequence; logits of the last of each. As the
  // engine, it reads prompts in the expanded form in native precision.
  void step(int64_t tokens, bool prompt = false) {
    const bool expanded = prompt && model_.model().options().precision == Precision::kNative;
    const auto vocab = static_cast<uint64_t>(model_.config().vocab_size);
    ids_.clear();
    positions_.clear();
    sequence_.clear();
    rows_.clear();
    slices_.clear();
    tables_.clear();
    for (CachedSequence& s : sequences_) {
      slices_.push_back({static_cast<int64_t>(ids_.size()), tokens, expanded});
      tables_.push_back({s.pages.data()});
      for (int64_t i = 0; i < tokens; ++i) {
        seed_ = mix(seed_);
        ids_.push_back(static_cast<int32_t>(seed_ % vocab));
        positions_.push_back(static_cast<int32_t>(s.length + i));
        sequence_.push_back(static_cast<int32_t>(tables_.size()) - 1);
      }
      rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      s.length += tokens;
    }
    // On a device only what greedy sampling needs comes back.
    const bool best_only = context_.device() != nullptr;
    logits_.resize(best_only ? 0 : rows_.size() * vocab);
    best_.resize(rows_.size());
    failed_.assign(slices_.size(), -1);
    Batch b;
    b.tokens = {static_cast<int64_t>(ids_.size()), sequence_.data(), positions_.data(),
                tables_.data()};
    b.ids = ids_.data();
    b.sequences = slices_;
    b.expand_below = expand_below_;
    b.kv = cache_.view();
    b.logit_rows = rows_;
    b.logits = best_only ? nullptr : logits_.data();
    b.best = best_only ? best_.data() : nullptr;
    b.failed_layer = failed_.data();
    model_.model().forward(context_, b, *selector_, act_);
  }

 private:
  static CacheOptions paged(const ThroughputOptions& options, int64_t max_tokens) {
    CacheOptions c = options.cache;
    c.pages = pages_for(max_tokens) * options.batch;
    return c;
  }

  KernelContext& context_;
  const LoadedModel& model_;
  std::unique_ptr<Selector> selector_;
  PagedCache cache_;
  std::vector<CachedSequence> sequences_;
  uint64_t seed_;
  int64_t expand_below_;
  Activations act_;
  std::vector<int32_t> ids_, positions_, sequence_, rows_, best_, failed_;
  std::vector<BatchSequence> slices_;
  std::vector<KvSequence> tables_;
  std::vector<float> logits_;
};

template <typename Work>
double timed(const Work& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Bytes and products of the weights a step with `rows` tokens reads.
class CostCounter {
 public:
  CostCounter(const ModelConfig& config, int64_t rows) : config_(config), rows_(rows) {}

  void add(const Weight& w) { add(w, 1.0, static_cast<double>(rows_)); }

  void add_layer(const LayerWeights& l) {
    const AttentionWeights& a = l.attention;
    for (const Weight* w : {&a.q_a, &a.q_b, &a.kv_a, &a.kv_b, &a.o}) add(*w);
    if (a.indexer) {
      for (const Weight* w : {&a.indexer->wq_b, &a.indexer->wk, &a.indexer->weights_proj}) add(*w);
    }
    if (l.moe.experts.empty()) return add_mlp(l.mlp, 1.0, static_cast<double>(rows_));
    add(l.moe.router);
    if (l.moe.shared) add_mlp(*l.moe.shared, 1.0, static_cast<double>(rows_));
    const double share =
        static_cast<double>(config_.experts_per_token) / static_cast<double>(config_.num_experts);
    const double touched = 1.0 - std::pow(1.0 - share, static_cast<double>(rows_));
    for (const MlpWeights& e : l.moe.experts) {
      add_mlp(e, touched, share * static_cast<double>(rows_));
    }
  }

  StepCost cost;

 private:
  void add_mlp(const MlpWeights& m, double touched, double rows) {
    for (const Weight* w : {&m.gate, &m.up, &m.down}) add(*w, touched, rows);
  }
  void add(const Weight& w, double touched, double rows) {
    cost.weight_bytes += touched * static_cast<double>(w.bytes());
    cost.flops += 2.0 * rows * static_cast<double>(w.rows * w.cols);
  }

  const ModelConfig& config_;
  int64_t rows_;
};

}  // namespace

StepCost decode_cost(const ModelConfig& config, const ModelWeights& weights,
                     const SelectionPolicy& policy, const CacheOptions& cache, int64_t depth,
                     int64_t batch) {
  CostCounter counter(config, batch);
  counter.add(weights.head);
  for (const LayerWeights& l : weights.layers) counter.add_layer(l);
  StepCost& c = counter.cost;
  for (const LayerConfig& layer : config.layers) {
    const KvLayout l = kv_layout_of(config, layer, cache.latent_format, cache.index_format);
    const bool sparse = policy.kind != AttentionKind::kDense && policy.topk > 0;
    const int64_t read = sparse ? std::min(depth + 1, policy.topk) : depth + 1;
    c.cache_bytes += static_cast<double>(batch * read * l.latent_row_bytes());
    c.flops += 2.0 * static_cast<double>(batch * read * config.num_heads) *
               static_cast<double>(2 * l.kv_lora + l.rope);
    const bool scores = policy.kind == AttentionKind::kSparse && l.index_dim > 0 && read <= depth;
    if (!scores) continue;
    const int64_t key = (l.page_bytes() - l.index_offset()) / kPageTokens;
    c.cache_bytes += static_cast<double>(batch * (depth + 1) * key);
    c.flops += 2.0 * static_cast<double>(batch * (depth + 1) * config.index_heads * l.index_dim);
  }
  return c;
}

Throughput measure_prefill(KernelContext& context, const LoadedModel& model, int64_t tokens,
                           const ThroughputOptions& options) {
  Bench bench(context, model, options, tokens);
  std::vector<double> seconds;
  for (int64_t r = 0; r < options.repeat; ++r) {
    bench.set_depth(0);
    seconds.push_back(timed([&] {
      for (int64_t done = 0; done < tokens; done += options.chunk) {
        bench.step(std::min(options.chunk, tokens - done), true);
      }
    }));
  }
  Throughput t;
  t.tokens = tokens;
  t.batch = options.batch;
  t.seconds = median(seconds);
  t.tokens_per_second = static_cast<double>(tokens * options.batch) / t.seconds;
  const StepCost c = decode_cost(model.config(), model.weights(), options.policy, options.cache,
                                 tokens / 2, options.batch);
  t.gigaflops = c.flops * static_cast<double>(tokens) / t.seconds * 1e-9;
  return t;
}

double measure_chunk(KernelContext& context, const LoadedModel& model, int64_t depth,
                     const ThroughputOptions& options) {
  Bench bench(context, model, options, depth + options.chunk);
  bench.fill(depth);
  std::vector<double> seconds;
  for (int64_t r = 0; r <= options.repeat; ++r) {
    bench.set_depth(depth);
    seconds.push_back(timed([&] { bench.step(options.chunk, true); }));
  }
  seconds.erase(seconds.begin());  // buffers grew
  return median(seconds);
}

int64_t measure_crossover(KernelContext& context, const LoadedModel& model,
                          const ThroughputOptions& options) {
  const int64_t end = model.config().max_position - options.chunk;
  const auto wins = [&](int64_t depth) {
    ThroughputOptions absorbed = options, expanded = options;
    absorbed.expand_below = 0;
    expanded.expand_below = INT64_MAX;
    return measure_chunk(context, model, depth, absorbed) <
           measure_chunk(context, model, depth, expanded);
  };
  int64_t low = 0, high = std::max<int64_t>(options.policy.topk, 1);
  while (high < end && !wins(high)) {
    low = high;
    high *= 2;
  }
  if (high >= end) return model.config().max_position;
  while (high - low > high / 16) {
    const int64_t middle = low + (high - low) / 2;
    (wins(middle) ? high : low) = middle;
  }
  return high;
}

Throughput measure_decode(KernelContext& context, const LoadedModel& model, int64_t depth,
                          const ThroughputOptions& options) {
  Bench bench(context, model, options, depth + options.tokens + 1);
  bench.fill(depth);
  bench.set_depth(depth);
  bench.step(1);  // buffers grow, pages are touched
  std::vector<double> seconds;
  for (int64_t r = 0; r < options.repeat; ++r) {
    bench.set_depth(depth);
    seconds.push_back(timed([&] {
      for (int64_t i = 0; i < options.tokens; ++i) bench.step(1);
    }));
  }
  Throughput t;
  t.depth = depth;
  t.tokens = options.tokens;
  t.batch = options.batch;
  t.seconds = median(seconds);
  t.tokens_per_second = static_cast<double>(options.tokens * options.batch) / t.seconds;
  const StepCost c = decode_cost(model.config(), model.weights(), options.policy, options.cache,
                                 depth, options.batch);
  const double steps = static_cast<double>(options.tokens) / t.seconds * 1e-9;
  t.gigabytes_per_second = (c.weight_bytes + c.cache_bytes) * steps;
  t.gigaflops = c.flops * steps;
  return t;
}

}  // namespace tamis
