// The lightning indexer (DeepSeek-V3.2, equation 1) and the selection it makes.
//
//   I[t,s] = sum_j w[t,j] ReLU(q[t,j] . k[s]),   S_t = the k largest over s <= t
//
// The score itself is the operation kernels/indexer_logits; here are its inputs.
#include <algorithm>
#include <cmath>

#include "model/layer_context.h"

namespace tamis {
namespace {

// k_norm is a LayerNorm with its own eps whatever rms_norm_eps says (docs/numerics.md 1).
constexpr float kKeyNormEps = 1e-6F;

RopeLayout layout_of(const LayerContext& c) {
  if (!c.options.swap_index_rope) return c.config.index_rope;
  return c.config.index_rope == RopeLayout::kHalfSplit ? RopeLayout::kInterleaved
                                                       : RopeLayout::kHalfSplit;
}

// What follows RoPE: in the FP8 indexer the Hadamard rotation.
void rotated(LayerContext& c, float* x, int64_t heads, bool hadamard_too) {
  const int64_t dim = c.config.index_dim, n = c.tokens();
  c.round(x, n, heads * dim, heads * dim);
  if (hadamard_too) hadamard(c.kernels, {x, n * heads, dim, c.numerics.native()});
}

// Every token takes all that it sees, and nobody asks for the list: on a device, attention without
// one has the same bits and saves making it.
bool takes_all(const LayerContext& c) {
  return c.act.place.device != nullptr && c.observer == nullptr && c.selector.uses_indexer() &&
         !indexer_needed(c);
}

}  // namespace

// FP8 keys are rotated before they are quantised, in every precision; so are then the queries.
bool uses_hadamard(const LayerContext& c) {
  return c.numerics.native() || c.batch.kv.front().layout.index_format == KvFormat::kFP8;
}

bool indexer_needed(const LayerContext& c) {
  if (c.observer != nullptr && c.observer->wants_index_scores()) return true;
  if (!c.selector.uses_indexer()) return false;
  // A token that sees no more than top-k positions takes them all: no scores needed.
  const int32_t* p = c.batch.tokens.position;
  return *std::max_element(p, p + c.tokens()) + 1 > c.selector.topk();
}

LayerNormArgs indexer_key_norm(LayerContext& c, const IndexerWeights& w) {
  const int64_t dim = c.config.index_dim;
  float* k = c.act.index_k.data();
  return {k, dim, w.k_norm_w.data(), w.k_norm_b.data(), c.tokens(), dim, kKeyNormEps, k, dim};
}

// RoPE turns the first `rope` dims.
RopeArgs indexer_key_rope(LayerContext& c) {
  const int64_t dim = c.config.index_dim;
  return {
      c.act.index_k.data(), dim, dim, c.tokens(), 1, c.config.rope, layout_of(c), c.act.cos.data(),
      c.act.sin.data()};
}

RopeArgs indexer_query_rope(LayerContext& c) {
  RopeArgs r = indexer_key_rope(c);
  r.x = c.act.index_q.data();
  r.heads = c.config.index_heads;
  r.token_stride = r.heads * c.config.index_dim;
  return r;
}

void indexer_rotated(LayerContext& c) {
  const bool fp8 = uses_hadamard(c);
  rotated(c, c.act.index_k.data(), 1, fp8 && !c.options.no_hadamard);
  if (indexer_needed(c)) rotated(c, c.act.index_q.data(), c.config.index_heads, fp8);
}

IndexQueryArgs indexer_queries(LayerContext& c) {
  const int64_t heads = c.config.index_heads, dim = c.config.index_dim, n = c.tokens();
  float *q = c.act.index_q.data(), *w = c.act.index_w.data();
  const float head_scale = 1.0F / std::sqrt(static_cast<float>(heads));
  const float dim_scale = 1.0F / std::sqrt(static_cast<float>(dim));
  return {q, w, n * heads, dim, head_scale, dim_scale, c.numerics.native(), c.numerics.ue8m0};
}

bool selects_beside(const LayerContext& c) {
  return joins_norms(c) && c.act.place.device != nullptr && c.tokens() == 1 &&
         c.selector.uses_indexer() && c.selector.same_every_step() && indexer_needed(c);
}

bool select_positions(LayerContext& c, const LayerConfig& kind, int64_t layer,
                      const MlaSparseArgs& attention, const PerHeadLinearArgs* absorb) {
  const ModelConfig& m = c.config;
  const int64_t n = c.tokens();
  SelectorInput in;
  in.layer = layer;
  in.tokens = c.batch.tokens;
  in.attention = attention;
  in.indexer = {c.act.index_q.data(), c.act.index_w.data(), m.index_heads,
                c.batch.kv[static_cast<size_t>(layer)], c.staged.tokens,
                // index_query() quantised them, in one block of one scale.
                c.numerics.native() && m.index_dim <= kFp8Block};
  const bool own = kind.indexer == IndexerKind::kOwn;
  // Without queries there are no scores: every token takes all that it sees.
  int64_t& longest = in.indexer.tokens.max_context;
  if (!indexer_needed(c)) longest = std::min(longest, c.selector.topk());
  if (own && c.observer != nullptr && c.observer->wants_index_scores()) {
    const int64_t stride = *std::max_element(in.tokens.position, in.tokens.position + n) + 1;
    float* scores = c.act.index_scores.get(n * stride);
    indexer_logits(c.kernels, {in.indexer, scores, stride});
    c.observe("index_scores", layer, scores, n, stride);
  }
  if (c.selector.selects_all()) return false;
  if (kind.indexer == IndexerKind::kNone && c.selector.uses_indexer()) return false;
  if (takes_all(c)) return false;
  const int64_t k = c.selector.topk();
  int32_t* topk = c.act.topk.get(n * k);
  // A shared layer keeps the selection of the layer below that has its own; the controls that do
  // not learn choose anew in every layer.
  if (own || !c.selector.uses_indexer()) {
    uint8_t* has_nan = c.act.has_nan.get(n);
    if (absorb != nullptr) {
      absorb_select(c.kernels, {*absorb, {in.indexer, k, topk, has_nan, indexer_query_rope(c)}});
    } else {
      c.selector.select(c.kernels, in, topk, has_nan);
    }
    later(c,
          CheckFlagsArgs{has_nan, n, c.staged.tokens.sequence, static_cast<int32_t>(layer),
                         c.staged.failed},
          1);
  }
  c.observe("topk", layer, topk, n, k);
  return true;
}

}  // namespace tamis
