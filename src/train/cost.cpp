#include "train/cost.h"

#include <algorithm>

namespace tamis {
namespace {

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
  for (const LayerConfig& layer : c.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    n.active -= (c.num_experts - c.experts_per_token) * 3 * c.moe_intermediate * c.hidden_size;
  }
  n.active -= c.vocab_size * c.hidden_size;  // the embedding is looked up, not multiplied
  return n;
}

double flops_per_token(const ModelConfig& c, const ParameterTable& table, const Stage& s) {
  const ParameterCount n = count_parameters(c, table);
  const bool sparse = s.sparse();
  const auto layers = as_double(c.num_layers()), heads = as_double(c.num_heads);
  const double all = mean_pairs(s.length, s.length);
  const double pairs = sparse ? mean_pairs(s.length, s.topk) : all;
  const double expanded = as_double(c.nope + c.rope + c.v_head);
  const double absorbed = as_double(2 * c.kv_lora + c.rope);
  const double attention = 2 * heads * pairs * (sparse ? absorbed : expanded);
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
    const double target =
        2 * heads * pairs * (sparse ? as_double(c.kv_lora + c.rope) : as_double(c.nope + c.rope));
    total += 2 * as_double(n.indexer) + layers * (pairs * index_pair * 3 + target);
  }
  return total;
}

}  // namespace tamis
