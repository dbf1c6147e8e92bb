// What the parts of a layer share during one forward pass. Internal to model/.
#pragma once

#include "kernels/memory.h"
#include "kernels/ops.h"
#include "model/staging.h"
#include "model/transformer.h"

namespace tamis {

struct LayerContext {
  KernelContext& kernels;
  const ModelConfig& config;
  const ModelOptions& options;
  const Numerics& numerics;
  Group& group;
  const Batch& batch;  // the caller's, on the host
  const StagedBatch& staged;
  const Selector& selector;
  Activations& act;
  Observer* observer;

  int64_t tokens() const { return batch.tokens.num_tokens; }
  int64_t local_heads() const { return config.num_heads / group.size(); }
  bool one_rank() const { return group.size() == 1; }
  void observe(std::string_view name, int64_t layer, const float* data, int64_t rows,
               int64_t cols) const {
    if (!shows()) return;
    observer->floats(name, layer, shown(data, rows * cols), rows, cols);
  }
  void observe(std::string_view name, int64_t layer, const int32_t* data, int64_t rows,
               int64_t cols) const {
    if (!shows()) return;
    observer->ints(name, layer, shown(data, rows * cols), rows, cols);
  }
  // x [rows, width], rows `stride` apart, to bf16 when native.
  void round(float* x, int64_t rows, int64_t width, int64_t stride) const {
    if (numerics.native()) round_rows(kernels, {x, rows, width, stride});
  }

 private:
  bool shows() const { return observer != nullptr && observer->wants_values(); }
  // The values on the host.
  template <typename T>
  const T* shown(const T* data, int64_t count) const {
    if (act.place.device == nullptr) return data;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    act.shown.resize(static_cast<size_t>(bytes));
    get(kernels, act.shown.data(), data, bytes);
    return reinterpret_cast<const T*>(act.shown.data());
  }
};

// Whether norms may be made where products read them: observers want what lies between, and other
// precisions round it.
bool joins_norms(const LayerContext& c);
// Runs what waits, the last of it `norm`, and the products of its result that attention begins
// with. True if `norm` is still to be run (token_products.h), by mla_forward.
bool mla_project(LayerContext& c, const AttentionWeights& w);
// Attn(h) of one layer, after mla_project -> delta. `layer` numbers the cache entry; `late`: a norm
// that is still to be run, or null.
void mla_forward(LayerContext& c, const AttentionWeights& w, const LayerConfig& kind, int64_t layer,
                 const RmsNormArgs* late);

// The position at which dense attention in the expanded form costs as many products as that to
// `topk` entries in the absorbed form.
int64_t balanced_position(const ModelConfig& config, int64_t topk);

// The indexer of one layer, in steps around those of mla_forward: whether there will be scores;
// whether keys and queries are rotated before they are quantised; the key's norm; RoPE of the key
// and of the queries; what follows it; the queries' scales.
bool indexer_needed(const LayerContext& c);
bool uses_hadamard(const LayerContext& c);
LayerNormArgs indexer_key_norm(LayerContext& c, const IndexerWeights& w);
RopeArgs indexer_key_rope(LayerContext& c);
RopeArgs indexer_query_rope(LayerContext& c);
void indexer_rotated(LayerContext& c);
IndexQueryArgs indexer_queries(LayerContext& c);
// Whether a layer with an indexer selects beside the absorption of the queries (absorb_select): on
// a device for one token, as the learned indexer does. Its queries then come to it before their
// RoPE.
bool selects_beside(const LayerContext& c);
// Fills act.topk; false if every token attends to all it sees. `absorb`: what is to run beside it,
// where selects_beside(), or null.
bool select_positions(LayerContext& c, const LayerConfig& kind, int64_t layer,
                      const MlaSparseArgs& attention, const PerHeadLinearArgs* absorb);

// FFN(g) of one layer: normed -> delta.
void mlp_forward(LayerContext& c, const MlpWeights& w, int64_t width);
// Makes the norm as well, of what add_and_norm says.
void moe_forward(LayerContext& c, const MoeWeights& w, const RmsNormArgs& norm, int64_t layer);

// x += the last delta, normed = its norm; the second waits.
RmsNormArgs next_norm(LayerContext& c, const Parameters& weight);
void add_and_norm(LayerContext& c, const Parameters& weight);
// A whole layer: adds the previous delta to x, leaves its own in delta.
void block_forward(LayerContext& c, const LayerWeights& w, const LayerConfig& kind, int64_t layer);

// y [tokens, width] from every rank's part [tokens, width / size], side by side. With one rank
// part and y are the same memory and nothing happens.
void gather_columns(LayerContext& c, const float* part, int64_t rows, int64_t width, float* y);
// Where a rank writes its part: y itself when it is alone.
float* part_of(LayerContext& c, int64_t rows, int64_t width, float* y);

// Operations on each token's values that wait for more of them, to run together (token_ops). What
// they read must stay until then.
void later(LayerContext& c, const TokenOp& op, int lane = 0);
// Runs them now.
void run_waiting(LayerContext& c);
// Marks sequences with a row of x [tokens, width] that is not finite; the second waits.
CheckFiniteArgs finite_check(LayerContext& c, const float* x, int64_t width, int64_t layer);
void check_finite(LayerContext& c, const float* x, int64_t width, int64_t layer, int lane = 0);

}  // namespace tamis
