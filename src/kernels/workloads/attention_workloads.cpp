// Attention and its selection: mla_sparse, mla_dense, indexer_logits, indexer_select, topk.
#include <algorithm>
#include <array>
#include <numeric>

#include "bench/workloads.h"
#include "kernels/indexer_select/indexer_select.h"
#include "kernels/mla_dense/mla_dense.h"
#include "kernels/mla_sparse/mla_sparse.h"
#include "kernels/topk/topk.h"
#include "kernels/workloads/operands.h"

namespace tamis {
namespace {

constexpr int64_t kLatent = 512, kRope = 64, kNope = 128, kValue = 128, kIndexDim = 128;

// Positions that the last `tokens` of `context` see, added up.
double visible(int64_t tokens, int64_t context) {
  return static_cast<double>(tokens) *
         (static_cast<double>(context) - static_cast<double>(tokens - 1) / 2);
}

// `count` positions at equal distances of the first `length`.
void spread(int64_t length, int64_t count, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(i * length / count);
}

struct SparseOperands {
  SparseOperands(const bench::SparseShape& s, KvFormat format)
      : cache({kLatent, kRope, 0, format, format}, s.context, s.tokens),
        q(noise(s.tokens * s.heads * (kLatent + kRope), 3)),
        out(static_cast<size_t>(s.tokens * s.heads * kLatent)),
        indices(static_cast<size_t>(s.tokens * s.selected)) {
    for (int64_t t = 0; t < s.tokens; ++t) {
      spread(s.context - s.tokens + t + 1, s.selected, indices.data() + t * s.selected);
    }
    args.q_latent = q.data();
    args.q_pe = q.data() + s.tokens * s.heads * kLatent;
    args.q_pe_token_stride = s.heads * kRope;
    args.q_pe_head_stride = kRope;
    args.heads = s.heads;
    args.kv = cache.kv;
    args.tokens = cache.map();
    args.indices = s.selected > 0 ? indices.data() : nullptr;
    args.k = s.selected;
    args.softmax_scale = 0.135F;
    args.out = out.data();
  }
  OwnedCache cache;
  std::vector<float> q, out;
  std::vector<int32_t> indices;
  MlaSparseArgs args;
};

enum class SparseMode : uint8_t { kFloat, kNative, kInt16 };

Workload sparse_workload(const bench::SparseShape& s, const NamedFormat& format, SparseMode mode) {
  constexpr std::array<const char*, 3> kSuffix = {"", ".native", ".int16"};
  Workload w;
  w.op = "mla_sparse";
  w.shape = std::string(s.name) + "." + format.name + kSuffix.at(static_cast<size_t>(mode));
  const double entries =
      s.selected > 0 ? static_cast<double>(s.tokens * s.selected) : visible(s.tokens, s.context);
  const double rows = std::min(entries, static_cast<double>(s.context));
  const KvLayout layout{kLatent, kRope, 0, format.format, format.format};
  w.bytes = rows * static_cast<double>(layout.latent_row_bytes()) +
            static_cast<double>(4 * s.tokens * s.heads * (2 * kLatent + kRope));
  w.flops = 2.0 * entries * static_cast<double>(s.heads * (2 * kLatent + kRope));
  w.prepare = [s, f = format.format, mode] {
    const auto o = std::make_shared<SparseOperands>(s, f);
    o->args.round_bf16 = mode == SparseMode::kNative;
    o->args.int16 = mode == SparseMode::kInt16;
    return [o](KernelContext& c) { mla_sparse(c, o->args); };
  };
  return w;
}

struct DenseOperands {
  explicit DenseOperands(const bench::DenseShape& s)
      : q(noise(s.tokens * s.heads * (kNope + kRope), 1)),
        kv(noise(s.tokens * s.heads * (kNope + kValue), 2)),
        k_pe(noise(s.tokens * kRope, 3)),
        out(static_cast<size_t>(s.tokens * s.heads * kValue)),
        position(static_cast<size_t>(s.tokens)) {
    std::iota(position.begin(), position.end(), 0);
    args.q = q.data();
    args.tokens = s.tokens;
    args.heads = s.heads;
    args.nope = kNope;
    args.rope = kRope;
    args.v_dim = kValue;
    args.position = position.data();
    args.kv = kv.data();
    args.k_pe = k_pe.data();
    args.softmax_scale = 0.07F;
    args.out = out.data();
  }
  std::vector<float> q, kv, k_pe, out;
  std::vector<int32_t> position;
  MlaDenseArgs args;
};

Workload dense_workload(const bench::DenseShape& s, bool bf16) {
  Workload w;
  w.op = "mla_dense";
  w.shape = std::string(s.name) + (bf16 ? ".native" : "");
  w.bytes = static_cast<double>(4 * s.tokens) *
            static_cast<double>(s.heads * (2 * kNope + kRope + 2 * kValue) + kRope);
  w.flops =
      2.0 * visible(s.tokens, s.tokens) * static_cast<double>(s.heads * (kNope + kRope + kValue));
  w.prepare = [s, bf16] {
    const auto o = std::make_shared<DenseOperands>(s);
    o->args.round_bf16 = bf16;
    return [o](KernelContext& c) { mla_dense(c, o->args); };
  };
  return w;
}

struct IndexOperands {
  IndexOperands(const bench::IndexShape& s, KvFormat format)
      : cache({0, 0, kIndexDim, KvFormat::kF32, format}, s.context, s.tokens),
        q(noise(s.tokens * s.heads * kIndexDim, 1)),
        w(noise(s.tokens * s.heads, 2)),
        indices(static_cast<size_t>(s.tokens * s.selected)),
        has_nan(static_cast<size_t>(s.tokens)) {
    in = {q.data(), w.data(), s.heads, cache.kv, cache.map()};
  }
  OwnedCache cache;
  std::vector<float> q, w, logits;
  std::vector<int32_t> indices;
  std::vector<uint8_t> has_nan;
  IndexerArgs in;
};

Workload index_workload(const bench::IndexShape& s, const NamedFormat& format, bool select) {
  Workload w;
  w.op = select ? "indexer_select" : "indexer_logits";
  w.shape = std::string(s.name) + "." + format.name;
  const KvLayout layout{0, 0, kIndexDim, KvFormat::kF32, format.format};
  w.bytes = static_cast<double>(s.context * layout.page_bytes() / kPageTokens) +
            static_cast<double>(4 * s.tokens * s.heads * (kIndexDim + 1)) +
            static_cast<double>(4 * s.tokens * (select ? s.selected : s.context));
  w.flops = 2.0 * visible(s.tokens, s.context) * static_cast<double>(s.heads * (kIndexDim + 1));
  w.prepare = [s, f = format.format, select]() -> std::function<void(KernelContext&)> {
    const auto o = std::make_shared<IndexOperands>(s, f);
    if (select) {
      return [o, k = s.selected](KernelContext& c) {
        indexer_select(c, {o->in, k, o->indices.data(), o->has_nan.data()});
      };
    }
    o->logits.resize(static_cast<size_t>(s.tokens * s.context));
    return [o, n = s.context](KernelContext& c) {
      indexer_logits(c, {o->in, o->logits.data(), n});
    };
  };
  return w;
}

// Distributions on which selections differ in speed: ordinary, half zeros, all in a few bits.
struct Scores {
  const char* name;
  float (*make)(float);
};
constexpr Scores kScores[] = {
    {"normal", [](float x) { return x; }},
    {"relu", [](float x) { return std::max(x, 0.0F); }},
    {"narrow", [](float x) { return 1.0F + (x > 0 ? x * 0x1p-14F : 0.0F); }},
    {"equal", [](float) { return 1.0F; }},
};

struct TopkOperands {
  TopkOperands(const bench::TopkShape& s, const Scores& kind)
      : scores(noise(s.length, 1)),
        indices(static_cast<size_t>(s.selected)),
        length(static_cast<int32_t>(s.length)) {
    for (float& v : scores) v = kind.make(v);
    args = {scores.data(), s.length, 1, &length, s.selected, indices.data(), nullptr};
  }
  std::vector<float> scores;
  std::vector<int32_t> indices;
  int32_t length;
  TopkArgs args;
};

Workload topk_workload(const bench::TopkShape& s, const Scores& kind) {
  Workload w;
  w.op = "topk";
  w.shape = std::string(s.name) + "." + kind.name;
  w.bytes = static_cast<double>(4 * (s.length + s.selected));
  w.flops = static_cast<double>(s.length);  // one comparison each, at least
  w.prepare = [s, &kind] {
    const auto o = std::make_shared<TopkOperands>(s, kind);
    return [o](KernelContext& c) { topk(c, o->args); };
  };
  return w;
}

}  // namespace

void add_attention_workloads(std::vector<Workload>& list) {
  for (const bench::SparseShape& s : bench::kSparseShapes) {
    for (const NamedFormat& f : kCacheFormats)
      list.push_back(sparse_workload(s, f, SparseMode::kFloat));
    list.push_back(sparse_workload(s, kCacheFormats[1], SparseMode::kNative));
    list.push_back(sparse_workload(s, kCacheFormats[1], SparseMode::kInt16));
  }
  for (const bench::DenseShape& s : bench::kDenseShapes) {
    list.push_back(dense_workload(s, false));
    list.push_back(dense_workload(s, true));
  }
  for (const bench::IndexShape& s : bench::kIndexShapes) {
    for (const NamedFormat& f : kCacheFormats) list.push_back(index_workload(s, f, true));
    list.push_back(index_workload(s, kCacheFormats[1], false));
  }
  for (const bench::TopkShape& s : bench::kTopkShapes) {
    for (const Scores& kind : kScores) list.push_back(topk_workload(s, kind));
  }
}

}  // namespace tamis
