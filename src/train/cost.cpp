#include "train/cost.h"

#include <algorithm>
#include <span>

#include "kernels/selection_mask.h"
#include "train/sparse_attention.h"

namespace tamis {
namespace {

constexpr int64_t kHeadTokens = 256;  // that a CPU has logits of at the same time

double as_double(int64_t x) { return static_cast<double>(x); }

// Pairs (token, earlier or same position) that a token of the stage attends to, on average.
double mean_pairs(int64_t length, int64_t most) {
  const int64_t full = std::min(length, most);
  // Positions below `full` see t + 1, the others `full`.
  return (as_double(full) * as_double(full + 1) / 2 + as_double(length - full) * as_double(full)) /
         as_double(length);
}

}  // namespace

ParameterCount count_parameters(const ModelConfig& c, const ParameterTable& table) {
  ParameterCount n;
  n.model = table.range(ParameterGroup::kModel).size();
  n.indexer = table.range(ParameterGroup::kIndexer).size();
  n.active = n.model;
  std::vector<LayerConfig> layers = c.layers;
  layers.insert(layers.end(), static_cast<size_t>(c.num_mtp_layers), c.mtp_layer);
  for (const LayerConfig& layer : layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    n.active -= (c.num_experts - c.experts_per_token) * 3 * c.moe_intermediate * c.hidden_size;
  }
  // The embedding is looked up, not multiplied; the head serves the module of one more token too.
  n.active += (c.num_mtp_layers - 1) * c.vocab_size * c.hidden_size;
  return n;
}

double flops_per_token(const ModelConfig& c, const ParameterTable& table, const Stage& s) {
  const ParameterCount n = count_parameters(c, table);
  const bool sparse = s.sparse();
  const auto layers = as_double(c.num_layers() + c.num_mtp_layers), heads = as_double(c.num_heads);
  const double all = mean_pairs(s.length, s.length);
  const double pairs = sparse ? mean_pairs(s.length, s.topk) : all;
  const double expanded = as_double(c.nope + c.rope + c.v_head);
  const double absorbed = as_double(2 * c.kv_lora + c.rope);
  const bool gathered = sparse && !s.masked;
  const double attention = 2 * heads * pairs * (gathered ? absorbed : expanded);
  double total = 0;
  if (s.trains_model()) {
    total += 6 * as_double(n.active) + layers * attention * 3.5;
  } else {
    total += 2 * as_double(n.active) + layers * attention;
  }
  const bool scores = sparse || s.trains_indexer();
  if (!scores || !c.has_indexer()) return total;
  const double index_pair = 2 * as_double(c.index_heads * (c.index_dim + 1));
  if (sparse) total += layers * all * index_pair;
  total += 2 * as_double(n.indexer);
  if (s.trains_indexer()) {
    const double target = 2 * heads * pairs * as_double((gathered ? c.kv_lora : c.nope) + c.rope);
    total += 2 * as_double(n.indexer) + layers * (pairs * index_pair * 3 + target);
  }
  return total;
}

namespace {

struct LayerBytes {
  int64_t kept = 0, expanded = 0;  // a token
};

// The vectors of pass.h, LayerState and ExpandedState.
LayerBytes layer_bytes(const ModelConfig& c, const Stage& s, const LayerConfig& layer,
                       int64_t length) {
  const bool moe = layer.ffn == FfnKind::kMoe;
  const int64_t d = c.hidden_size, chosen = c.experts_per_token, heads = c.num_heads;
  const int64_t mlp = moe ? c.moe_intermediate * c.num_shared_experts : c.intermediate;
  LayerBytes b;
  b.kept = 2 * d + c.q_lora + c.kv_lora + c.rope + heads * c.v_head + 2 * mlp;
  b.expanded = c.q_lora + heads * c.qk_head() + c.kv_lora + c.rope;
  if (s.sparse() && s.masked) b.kept += 2 * selection_words_in_all(length);
  if (s.sparse() && !s.masked) {
    b.kept += (s.recompute ? 0 : heads * c.kv_lora) + s.topk;
  } else {
    b.kept += heads;  // log_sum
    b.expanded += heads * (c.nope + c.v_head);
  }
  if (moe) b.kept += c.num_experts + chosen * (2 * d + 2 * c.moe_intermediate + 3);
  return {4 * b.kept, 4 * b.expanded};
}

}  // namespace

int64_t activation_bytes(const ModelConfig& config, const Stage& s) {
  int64_t kept = 0, expanded = 0;
  const size_t layers = config.layers.size();
  // Without a backward pass two layers take turns.
  for (size_t l = 0; l < (s.trains_model() ? layers : std::min<size_t>(2, layers)); ++l) {
    const LayerBytes b = layer_bytes(config, s, config.layers[l], s.length);
    kept += b.kept;
    expanded = s.recompute ? std::max(expanded, b.expanded) : expanded + b.expanded;
  }
  const int64_t model = (kept + expanded) * s.micro_batch * s.length;
  if (config.num_mtp_layers == 0) return model;
  const LayerBytes mtp = layer_bytes(config, s, config.mtp_layer, s.length - 1);
  return model + (mtp.kept + mtp.expanded) * s.micro_batch * (s.length - 1);
}

namespace {

// The Workspace of pass.h for a pass of n tokens through `layers`.
int64_t work_values(const ModelConfig& c, const Stage& s, std::span<const LayerConfig> layers,
                    int64_t n) {
  const bool trains = s.trains_model(), gathered = s.sparse() && !s.masked;
  const int64_t d = c.hidden_size, heads = c.num_heads, latent = heads * c.kv_lora;
  int64_t act = 0, of_experts = 0;
  for (const LayerConfig& layer : layers) {
    const bool moe = layer.ffn == FfnKind::kMoe;
    act = std::max(act, moe ? c.moe_intermediate * c.num_shared_experts : c.intermediate);
    if (!moe) continue;
    act = std::max(act, c.moe_intermediate * c.experts_per_token);
    of_experts = c.num_experts + c.experts_per_token * (1 + 2 * d);
  }
  int64_t each = 2 * d + act;  // norms, the last stream, SwiGLU
  if (c.has_indexer() && (s.sparse() || s.trains_indexer())) {
    const int64_t q = c.index_heads * c.index_dim;
    each += q + 2 * c.index_dim + c.index_heads;
    if (s.trains_indexer()) each += q + c.index_dim + c.index_heads;
    if (s.masked || (gathered && s.trains_indexer())) each += s.topk;
  }
  int64_t total = gathered ? std::min(n, latent_block(c)) * latent * (s.recompute ? 2 : 1) : 0;
  if (trains) {
    each += 2 * d + of_experts + 3 * act;
    each += heads * (c.v_head + c.qk_head()) + 2 * (c.kv_lora + c.rope) + 2 * c.q_lora;
    if (!gathered) each += heads * (c.nope + c.v_head);
    if (gathered) total += 2 * std::min(n, latent_block(c)) * latent;
    total += std::min(n, kHeadTokens) * c.vocab_size;
  }
  return total + each * n;
}

}  // namespace

int64_t work_bytes(const ModelConfig& c, const Stage& s) {
  const int64_t n = s.micro_batch * s.length, next = s.micro_batch * (s.length - 1);
  int64_t values = work_values(c, s, c.layers, n);
  if (c.num_mtp_layers > 0) {
    const int64_t joined = s.trains_model() ? 8 : 4;  // of the module's input, by hidden_size
    values += work_values(c, s, {&c.mtp_layer, 1}, next) + joined * c.hidden_size * next;
  }
  return 4 * values;
}

}  // namespace tamis
