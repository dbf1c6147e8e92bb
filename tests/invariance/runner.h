// Forward passes over sequences cut and batched in any way, keeping the logits of every token.
#pragma once

#include <numeric>
#include <random>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "support/test_backend.h"

namespace tamis {

using Logits = std::vector<float>;  // [tokens, vocabulary]

inline std::vector<int32_t> random_ids(int64_t n, int64_t vocab, uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_int_distribution<int32_t> pick(0, static_cast<int32_t>(vocab - 1));
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = pick(rng);
  return ids;
}

class Runner {
 public:
  Runner(const LoadedModel& model, int threads, Backend backend = Backend::kCpu,
         KvFormat format = KvFormat::kF32)
      : model_(model),
        context_(threads, backend),
        cache_(model.config(), {512, format, format}, context_.device()) {
    SelectionPolicy policy;
    policy.topk = model.config().index_topk;
    if (!model.config().has_indexer()) policy.kind = AttentionKind::kDense;
    selector_ = make_selector(policy);
  }

  struct Part {
    CachedSequence* sequence;
    std::vector<int32_t> ids;
  };

  // One pass over the next tokens of several sequences; logits of every token, part after part.
  Logits step(const std::vector<Part>& parts) {
    std::vector<int32_t> ids, position, sequence;
    std::vector<KvSequence> tables;
    std::vector<BatchSequence> slices;
    for (const Part& p : parts) {
      const auto n = static_cast<int64_t>(p.ids.size());
      if (!cache_.reserve(*p.sequence, n)) throw std::runtime_error("test cache too small");
      slices.push_back({static_cast<int64_t>(ids.size()), n, false});
      for (int64_t i = 0; i < n; ++i) {
        ids.push_back(p.ids[static_cast<size_t>(i)]);
        position.push_back(static_cast<int32_t>(p.sequence->length + i));
        sequence.push_back(static_cast<int32_t>(tables.size()));
      }
      tables.push_back({p.sequence->pages.data()});
      p.sequence->length += n;
    }
    std::vector<int32_t> rows(ids.size()), failed(slices.size());
    std::iota(rows.begin(), rows.end(), 0);
    Logits logits(ids.size() * static_cast<size_t>(model_.config().vocab_size));
    Batch b;
    b.tokens = {static_cast<int64_t>(ids.size()), sequence.data(), position.data(), tables.data()};
    b.ids = ids.data();
    b.sequences = slices;
    b.kv = cache_.view();
    b.logit_rows = rows;
    b.logits = logits.data();
    b.failed_layer = failed.data();
    model_.model().forward(context_, b, *selector_, act_);
    failed_ = failed;
    return logits;
  }

  // The whole sequence in chunks.
  Logits run(const std::vector<int32_t>& ids, int64_t chunk, CachedSequence& sequence) {
    Logits all;
    const auto n = static_cast<int64_t>(ids.size());
    for (int64_t begin = 0; begin < n; begin += chunk) {
      const int64_t end = std::min(n, begin + chunk);
      const Logits part = step({{&sequence, {ids.begin() + begin, ids.begin() + end}}});
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  Logits run(const std::vector<int32_t>& ids, int64_t chunk) {
    CachedSequence s;
    Logits l = run(ids, chunk, s);
    cache_.release(s);
    return l;
  }

  PagedCache& cache() { return cache_; }
  const std::vector<int32_t>& failed() const { return failed_; }

 private:
  const LoadedModel& model_;
  KernelContext context_;
  PagedCache cache_;
  std::unique_ptr<Selector> selector_;
  Activations act_;
  std::vector<int32_t> failed_;
};

}  // namespace tamis
