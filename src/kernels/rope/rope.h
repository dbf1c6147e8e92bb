// Rotary position embedding with YaRN, and its two layouts.
//
//   angle(p, i) = float(p) * inv_freq[i], ONE float32 product; cos and sin in float32, times the
//   table's attention scaling
//   interleaved   pairs (x[2i], x[2i+1])        MLA's q_pe and k_pe, GLM's indexer
//   half-split    pairs (x[i], x[i + d/2])      V3.2's indexer
// The rotated pair takes the place of the old one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"

namespace tamis {

enum class RopeLayout : uint8_t { kInterleaved, kHalfSplit };

struct YarnConfig {
  double factor = 1, beta_fast = 32, beta_slow = 1, mscale = 1, mscale_all_dim = 0;
  int64_t original_max_position = 0;
  // config.json without the key means g(1) = 0.1 ln(factor) + 1 in place of the mscale ratio.
  bool has_mscale = false;
};

// inv_freq [dim/2] (docs/numerics.md 2); yarn null means none.
std::vector<float> rope_inv_freq(int64_t dim, double theta, const YarnConfig* yarn);
// What cos and sin are multiplied by: g(mscale) / g(mscale_all_dim), 1 without yarn.
double rope_attention_scaling(const YarnConfig* yarn);
// qk_head_dim^-1/2 * g(mscale_all_dim)^2; the square only with yarn and mscale_all_dim != 0.
double mla_softmax_scale(int64_t qk_head_dim, const YarnConfig* yarn);

// cos, sin [tokens, inv_freq.size()].
void rope_tables(KernelContext& context, const std::vector<float>& inv_freq, float scaling,
                 const int32_t* positions, int64_t tokens, float* cos, float* sin);

struct RopeArgs {
  float* x = nullptr;  // rotated in place: dims [0, dim) of every head
  int64_t token_stride = 0, head_stride = 0;
  int64_t tokens = 0, heads = 0, dim = 0;
  RopeLayout layout = RopeLayout::kInterleaved;
  const float* cos = nullptr;  // [tokens, dim/2]
  const float* sin = nullptr;
};

void rope(KernelContext& context, const RopeArgs& args);
// Several that do not depend on each other.
void ropes(KernelContext& context, std::span<const RopeArgs> args);

}  // namespace tamis
