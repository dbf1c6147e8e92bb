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
  found_.clear();
}

void SelectionProbe::add(const Row& row) {
  rows_.push_back(row);
  const auto n = static_cast<size_t>(layers_);
  found_.push_back({Layers(n), Layers(n), std::vector<float>(n)});
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

SelectionProbe::Shares SelectionProbe::shares_of(const std::vector<float>& mass, float heads,
                                                 float least) {
  Shares out;
  for (size_t p = 0; p < mass.size(); ++p) {
    const float share = mass[p] / heads;
    if (share > 0 && share >= least) out.push_back({static_cast<int32_t>(p), share});
  }
  return out;
}

float SelectionProbe::share_at(const Shares& shares, int32_t position) {
  const auto at = std::lower_bound(shares.begin(), shares.end(), position,
                                   [](const Share& s, int32_t p) { return s.position < p; });
  return at != shares.end() && at->position == position ? at->share : 0;
}

void SelectionProbe::find_selected(KernelContext& context, const Row& row,
                                   const MlaSparseArgs& args) {
  selected_.clear();
  if (args.indices == nullptr) {
    for (int32_t p = 0; p <= row.position; ++p) selected_.push_back(p);
    return;
  }
  selected_.resize(static_cast<size_t>(args.k));
  get(context, selected_.data(), args.indices + row.token * args.k,
      args.k * static_cast<int64_t>(sizeof(int32_t)));
  std::erase(selected_, -1);
}

void SelectionProbe::count(const Row& row, int64_t layer, double kept) {
  SelectionStats::Layer& sums = stats_.layers[static_cast<size_t>(layer)];
  ++sums.tokens;
  sums.kept += kept;
  for (const int32_t p : selected_) {
    const auto distance = static_cast<uint32_t>(row.position - p);
    const auto bucket = static_cast<size_t>(distance <= 1 ? 0 : std::bit_width(distance - 1));
    ++stats_.distance[std::min(bucket, SelectionStats::kDistances - 1)];
    stats_.distance_sum += distance;
  }
}

void SelectionProbe::attention(KernelContext& context, int64_t layer, const MlaSparseArgs& args) {
  if (layer >= layers_) return;
  const auto l = static_cast<size_t>(layer);
  const auto heads = static_cast<float>(args.heads);
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    Found& found = found_[i];
    if (row.top > 0) {
      found.read[l] = shares_of(mass(context, row, args, /*dense=*/false), heads, 0);
    }
    // Of a dense layer both are the same.
    const std::vector<float>& dense =
        row.top > 0 && args.indices == nullptr ? host_ : mass(context, row, args, /*dense=*/true);
    find_selected(context, row, args);
    double kept = 0;
    for (const int32_t p : selected_) kept += dense[static_cast<size_t>(p)];
    kept /= static_cast<double>(heads);
    // Of a sequence whose numbers are none, nothing can be said; it ends with an error.
    if (!(kept >= 0)) continue;
    if (row.recall) count(row, layer, kept);
    if (row.top == 0) continue;
    found.dense[l] = shares_of(dense, heads, ReadPosition::kLeast);
    found.kept[l] = static_cast<float>(std::min(kept, 1.0));
  }
}

TokenReads SelectionProbe::reads(size_t i) const {
  const Row& row = rows_[i];
  TokenReads out;
  if (row.top == 0) return out;
  out.position = row.position;
  out.kept = found_[i].kept;
  std::map<int32_t, double> total;
  for (const auto& layer : found_[i].read) {
    for (const Share& s : layer) total[s.position] += s.share;
  }
  std::vector<std::pair<double, int32_t>> order;
  for (const auto& [position, sum] : total) order.emplace_back(-sum, position);
  const size_t n = std::min(order.size(), static_cast<size_t>(row.top));
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(n), order.end());
  for (size_t k = 0; k < n; ++k) {
    ReadPosition read{order[k].second, {}, {}};
    for (const auto& layer : found_[i].read) read.share.push_back(share_at(layer, read.position));
    for (const auto& layer : found_[i].dense) read.dense.push_back(share_at(layer, read.position));
    out.top.push_back(std::move(read));
  }
  return out;
}

}  // namespace tamis
