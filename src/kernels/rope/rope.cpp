#include "kernels/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/rope/rope_impl.h"

namespace tamis {
namespace {

double yarn_g(double m, double factor) { return factor > 1 ? 0.1 * m * std::log(factor) + 1 : 1; }

// The dimension that turns `rotations` times over the original context.
double correction_dim(double rotations, double dim, double theta, double original) {
  return dim * std::log(original / (2 * std::numbers::pi * rotations)) / (2 * std::log(theta));
}

void rotate(float& a, float& b, float cos, float sin) {
  const float x = a, y = b;
  a = x * cos - y * sin;
  b = y * cos + x * sin;
}

void rotate_head(const RopeArgs& a, float* x, const float* cos, const float* sin) {
  const int64_t half = a.dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    if (a.layout == RopeLayout::kInterleaved) {
      rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
    } else {
      rotate(x[i], x[i + half], cos[i], sin[i]);
    }
  }
}

void rope_reference(KernelContext& context, const RopeArgs& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) {
    const float* cos = a.cos + t * (a.dim / 2);
    const float* sin = a.sin + t * (a.dim / 2);
    for (int64_t h = 0; h < a.heads; ++h) {
      rotate_head(a, a.x + t * a.token_stride + h * a.head_stride, cos, sin);
    }
  });
}

constexpr Implementation<RopeArgs> kList[] = {
    {"cuda", [](const RopeArgs&) { return true; }, rope_cuda},
    {"reference", [](const RopeArgs&) { return true; }, rope_reference},
};

}  // namespace

std::vector<float> rope_inv_freq(int64_t dim, double theta, const YarnConfig* yarn) {
  std::vector<float> freq(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    freq[i] = 1.0f / std::pow(static_cast<float>(theta), exponent);
  }
  if (yarn == nullptr) return freq;
  const auto d = static_cast<double>(dim);
  const auto original = static_cast<double>(yarn->original_max_position);
  const double low = std::max(std::floor(correction_dim(yarn->beta_fast, d, theta, original)), 0.0);
  double high = std::min(std::ceil(correction_dim(yarn->beta_slow, d, theta, original)), d - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < freq.size(); ++i) {
    const auto ramp =
        static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    freq[i] = freq[i] / static_cast<float>(yarn->factor) * ramp + freq[i] * (1.0f - ramp);
  }
  return freq;
}

double rope_attention_scaling(const YarnConfig* yarn) {
  if (yarn == nullptr) return 1;
  if (!yarn->has_mscale) return yarn_g(1, yarn->factor);
  return yarn_g(yarn->mscale, yarn->factor) / yarn_g(yarn->mscale_all_dim, yarn->factor);
}

double mla_softmax_scale(int64_t qk_head_dim, const YarnConfig* yarn) {
  double scale = 1 / std::sqrt(static_cast<double>(qk_head_dim));
  if (yarn != nullptr && yarn->mscale_all_dim != 0) {
    const double g = yarn_g(yarn->mscale_all_dim, yarn->factor);
    scale *= g * g;
  }
  return scale;
}

void rope_tables(KernelContext& context, const std::vector<float>& inv_freq, float scaling,
                 const int32_t* positions, int64_t tokens, float* cos, float* sin) {
  const auto half = static_cast<int64_t>(inv_freq.size());
  context.pool().run(tokens, [&](int64_t t, int) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions[t]) * inv_freq[static_cast<size_t>(i)];
      cos[t * half + i] = std::cos(angle) * scaling;
      sin[t * half + i] = std::sin(angle) * scaling;
    }
  });
}

void rope(KernelContext& context, const RopeArgs& args) {
  dispatch<RopeArgs>(context, "rope", kList, args);
}

void ropes(KernelContext& context, std::span<const RopeArgs> args) {
  if (context.backend() == Backend::kCuda) {
    context.note("rope", "cuda");
    return ropes_cuda(context, args);
  }
  for (const RopeArgs& a : args) rope(context, a);
}

}  // namespace tamis
