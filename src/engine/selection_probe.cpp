#include "engine/selection_probe.h"

#include <algorithm>
#include <bit>
#include <map>

#include "kernels/memory.h"
#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

SelectionProbe::SelectionProbe(int64_t layers, DeviceContext* device)
    : layers_(layers), place_{device} {
  stats_.layers.resize(static_cast<size_t>(layers));
}

void SelectionProbe::clear() {
  rows_.clear();
  shares_.clear();
}

void SelectionProbe::add(const Row& row) {
  rows_.push_back(row);
  shares_.emplace_back(static_cast<size_t>(layers_));
}

const std::vector<float>& SelectionProbe::mass(KernelContext& context, const Row& row,
                                               MlaSparseArgs args, bool dense) {
  const int64_t visible = row.position + 1, kv_lora = args.kv.layout.kv_lora;
  const int64_t bytes = visible * static_cast<int64_t>(sizeof(float));
  args.q_latent += row.token * args.heads * kv_lora;
  args.q_pe += row.token * args.q_pe_token_stride;
  args.tokens.num_tokens = 1;
  args.tokens.sequence += row.token;
  args.tokens.position += row.token;
  if (dense) args.indices = nullptr;
  if (args.indices != nullptr) args.indices += row.token * args.k;
  args.out = out_.get(args.heads * kv_lora);
  args.mass = mass_.get(visible);
  args.mass_stride = visible;
  zero(context, args.mass, bytes);
  mla_sparse(context, args);
  host_.resize(static_cast<size_t>(visible));
  get(context, host_.data(), args.mass, bytes);
  return host_;
}

void SelectionProbe::keep(size_t row, int64_t layer, const std::vector<float>& mass,
                          int64_t heads) {
  std::vector<Share>& out = shares_[row][static_cast<size_t>(layer)];
  const auto all = static_cast<float>(heads);
  for (size_t p = 0; p < mass.size(); ++p) {
    if (mass[p] > 0) out.push_back({static_cast<int32_t>(p), mass[p] / all});
  }
}

// The distances of what was selected, and its part of dense attention.
void SelectionProbe::measure(KernelContext& context, const Row& row, int64_t layer,
                             const MlaSparseArgs& args) {
  selected_.clear();
  if (args.indices != nullptr) {
    selected_.resize(static_cast<size_t>(args.k));
    get(context, selected_.data(), args.indices + row.token * args.k,
        args.k * static_cast<int64_t>(sizeof(int32_t)));
    std::erase(selected_, -1);
  } else {
    for (int32_t p = 0; p <= row.position; ++p) selected_.push_back(p);
  }
  const std::vector<float>& dense = mass(context, row, args, /*dense=*/true);
  double kept = 0;
  for (const int32_t p : selected_) kept += dense[static_cast<size_t>(p)];
  // Of a sequence whose numbers are none, nothing can be said; it ends with an error.
  if (!(kept >= 0)) return;
  SelectionStats::Layer& sums = stats_.layers[static_cast<size_t>(layer)];
  ++sums.tokens;
  sums.kept += kept / static_cast<double>(args.heads);
  for (const int32_t p : selected_) {
    const auto distance = static_cast<uint32_t>(row.position - p);
    const auto bucket = static_cast<size_t>(distance <= 1 ? 0 : std::bit_width(distance - 1));
    ++stats_.distance[std::min(bucket, SelectionStats::kDistances - 1)];
    stats_.distance_sum += distance;
  }
}

void SelectionProbe::attention(KernelContext& context, int64_t layer, const MlaSparseArgs& args) {
  if (layer >= layers_) return;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    if (row.top > 0) keep(i, layer, mass(context, row, args, /*dense=*/false), args.heads);
    if (row.recall) measure(context, row, layer, args);
  }
}

TokenReads SelectionProbe::reads(size_t i) const {
  const Row& row = rows_[i];
  TokenReads out;
  if (row.top == 0) return out;
  out.position = row.position;
  std::map<int32_t, double> total;
  for (const auto& layer : shares_[i]) {
    for (const Share& s : layer) total[s.position] += s.share;
  }
  std::vector<std::pair<double, int32_t>> order;
  for (const auto& [position, sum] : total) order.emplace_back(-sum, position);
  const size_t n = std::min(order.size(), static_cast<size_t>(row.top));
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(n), order.end());
  for (size_t k = 0; k < n; ++k) {
    ReadPosition read{order[k].second, {}};
    for (const auto& layer : shares_[i]) {
      const auto at = std::lower_bound(layer.begin(), layer.end(), read.position,
                                       [](const Share& s, int32_t p) { return s.position < p; });
      const bool found = at != layer.end() && at->position == read.position;
      read.share.push_back(found ? at->share : 0);
    }
    out.top.push_back(std::move(read));
  }
  return out;
}

}  // namespace tamis
