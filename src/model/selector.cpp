#include "model/selector.h"

#include <algorithm>
#include <numeric>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/indexer_select/indexer_select.h"
#include "kernels/memory.h"
#include "kernels/topk/topk.h"
#include "model/activations.h"

namespace tamis {
namespace {

struct Name {
  AttentionKind kind;
  std::string_view name;
};
constexpr Name kNames[] = {{AttentionKind::kSparse, "sparse"},
                           {AttentionKind::kDense, "dense"},
                           {AttentionKind::kWindow, "window"},
                           {AttentionKind::kRandom, "random"},
                           {AttentionKind::kOracle, "oracle"}};

void fill_range(int32_t* row, int64_t k, int64_t begin, int64_t end) {
  std::iota(row, row + (end - begin), static_cast<int32_t>(begin));
  std::fill(row + (end - begin), row + k, -1);
}

class LearnedSelector final : public Selector {
 public:
  explicit LearnedSelector(int64_t k) : k_(k) {}
  int64_t topk() const override { return k_; }
  bool uses_indexer() const override { return true; }
  bool same_every_step() const override { return true; }
  void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
              uint8_t* has_nan) const override {
    indexer_select(context, {in.indexer, k_, indices, has_nan});
  }

 private:
  int64_t k_;
};

class DenseSelector final : public Selector {
 public:
  bool selects_all() const override { return true; }
  bool same_every_step() const override { return true; }
  void select(KernelContext&, const SelectorInput&, int32_t*, uint8_t*) const override {}
};

class WindowSelector final : public Selector {
 public:
  explicit WindowSelector(int64_t k) : k_(k) {}
  int64_t topk() const override { return k_; }
  bool same_every_step() const override { return true; }
  void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
              uint8_t* has_nan) const override {
    const TokenMap& t = in.attention.tokens;
    zero(context, has_nan, t.num_tokens);
    select_window(context, {t.position, t.num_tokens, k_, indices});
  }

 private:
  int64_t k_;
};

// splitmix64: a fixed function of its argument, the same on every machine.
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

class RandomSelector final : public Selector {
 public:
  RandomSelector(int64_t k, uint64_t seed) : k_(k), seed_(seed) {}
  int64_t topk() const override { return k_; }
  void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
              uint8_t* has_nan) const override {
    zero(context, has_nan, in.tokens.num_tokens);
    std::vector<int32_t> rows(static_cast<size_t>(in.tokens.num_tokens * k_));
    context.pool().run(in.tokens.num_tokens, [&](int64_t t, int) {
      row(in.layer, in.tokens.position[t], rows.data() + t * k_);
    });
    put(context, indices, rows.data(), static_cast<int64_t>(rows.size() * sizeof(int32_t)));
  }

 private:
  // Floyd's sample of k of position + 1, a function of (seed, layer, position) alone.
  void row(int64_t layer, int64_t position, int32_t* out) const {
    const int64_t n = position + 1;
    if (n <= k_) return fill_range(out, k_, 0, n);
    uint64_t state =
        mix(mix(seed_ ^ mix(static_cast<uint64_t>(layer))) + static_cast<uint64_t>(position));
    std::unordered_set<int32_t> chosen;
    for (int64_t j = n - k_; j < n; ++j) {
      state = mix(state);
      const auto pick = static_cast<int32_t>(state % static_cast<uint64_t>(j + 1));
      if (!chosen.insert(pick).second) chosen.insert(static_cast<int32_t>(j));
    }
    std::copy(chosen.begin(), chosen.end(), out);
    std::sort(out, out + k_);
  }

  int64_t k_;
  uint64_t seed_;
};

// The k positions with the largest head-summed dense attention: what a perfect indexer would pick.
class OracleSelector final : public Selector {
 public:
  explicit OracleSelector(int64_t k) : k_(k) {}
  int64_t topk() const override { return k_; }
  bool sees_own_heads_only() const override { return true; }
  void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
              uint8_t* has_nan) const override {
    const int64_t n = in.tokens.num_tokens;
    const int64_t stride =
        *std::max_element(in.tokens.position, in.tokens.position + n) + int64_t{1};
    Place place{context.device()};
    GrowBuffer<float> mass(place), out(place);
    GrowBuffer<int32_t> lengths(place);
    std::vector<int32_t> visible;
    for (int64_t t = 0; t < n; ++t) visible.push_back(in.tokens.position[t] + 1);
    put(context, lengths.get(n), visible.data(), n * static_cast<int64_t>(sizeof(int32_t)));
    MlaSparseArgs dense = in.attention;
    dense.indices = nullptr;
    dense.out = out.get(n * in.attention.heads * in.attention.kv.layout.kv_lora);
    dense.mass = mass.get(n * stride);
    dense.mass_stride = stride;
    zero(context, dense.mass, n * stride * static_cast<int64_t>(sizeof(float)));
    mla_sparse(context, dense);
    tamis::topk(context, {dense.mass, stride, n, lengths.data(), k_, indices, has_nan});
  }

 private:
  int64_t k_;
};

}  // namespace

AttentionKind attention_from_name(std::string_view name) {
  for (const Name& n : kNames) {
    if (n.name == name) return n.kind;
  }
  throw UsageError("unknown attention '" + printable(name) +
                   "': want sparse, dense, window, random or oracle");
}

std::string_view attention_name(AttentionKind kind) {
  return kNames[static_cast<size_t>(kind)].name;
}

std::unique_ptr<Selector> make_selector(const SelectionPolicy& policy) {
  if (policy.kind != AttentionKind::kDense && policy.topk < 1) {
    throw UsageError("attention " + std::string(attention_name(policy.kind)) +
                     ": top-k must be at least 1");
  }
  switch (policy.kind) {
    case AttentionKind::kSparse:
      return std::make_unique<LearnedSelector>(policy.topk);
    case AttentionKind::kDense:
      return std::make_unique<DenseSelector>();
    case AttentionKind::kWindow:
      return std::make_unique<WindowSelector>(policy.topk);
    case AttentionKind::kRandom:
      return std::make_unique<RandomSelector>(policy.topk, policy.seed);
    case AttentionKind::kOracle:
      return std::make_unique<OracleSelector>(policy.topk);
  }
  throw UsageError("attention: unknown kind");
}

}  // namespace tamis
