#include "kernels/adamw/adamw.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/adamw/adamw_impl.h"

namespace tamis {
namespace {

constexpr int64_t kBlock = kSquaresBlock;

int64_t blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

void adamw_reference(KernelContext& context, const AdamwArgs& a) {
  const AdamwFactors f = adamw_factors(a);
  context.pool().run(blocks(a.n), [&](int64_t block, int) {
    const int64_t end = std::min(a.n, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) {
      const float g = a.g[i] * f.scale;
      a.m[i] = f.b1 * a.m[i] + f.c1 * g;
      a.v[i] = f.b2 * a.v[i] + f.c2 * (g * g);
      a.w[i] = a.w[i] * f.keep - f.rate * a.m[i] / (std::sqrt(a.v[i]) * f.root + f.eps);
    }
  });
}

constexpr Implementation<AdamwArgs> kList[] = {
    {"cuda", [](const AdamwArgs&) { return true; }, adamw_cuda},
    {"reference", [](const AdamwArgs&) { return true; }, adamw_reference},
};

}  // namespace

AdamwFactors adamw_factors(const AdamwArgs& a) {
  const auto step = static_cast<double>(a.step);
  AdamwFactors f;
  f.b1 = static_cast<float>(a.beta1);
  f.b2 = static_cast<float>(a.beta2);
  f.c1 = static_cast<float>(1 - a.beta1);
  f.c2 = static_cast<float>(1 - a.beta2);
  f.keep = static_cast<float>(1 - a.learning_rate * a.decay);
  f.rate = static_cast<float>(a.learning_rate / (1 - std::pow(a.beta1, step)));
  f.root = static_cast<float>(1 / std::sqrt(1 - std::pow(a.beta2, step)));
  f.eps = static_cast<float>(a.eps);
  f.scale = static_cast<float>(a.gradient_scale);
  return f;
}

void adamw(KernelContext& context, const AdamwArgs& args) {
  dispatch<AdamwArgs>(context, "adamw", kList, args);
}

std::vector<double> squares_by_block(KernelContext& context, const float* x, int64_t n) {
  if (context.backend() == Backend::kCuda) return squares_by_block_cuda(context, x, n);
  std::vector<double> part(static_cast<size_t>(blocks(n)));
  context.pool().run(blocks(n), [&](int64_t block, int) {
    double sum = 0;
    for (int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
      sum += static_cast<double>(x[i]) * x[i];
    }
    part[static_cast<size_t>(block)] = sum;
  });
  return part;
}

double sum_of_squares(KernelContext& context, const float* x, int64_t n) {
  double total = 0;
  for (const double p : squares_by_block(context, x, n)) total += p;
  return total;
}

}  // namespace tamis
