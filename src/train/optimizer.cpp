#include "train/optimizer.h"

#include <cmath>

#include "kernels/adamw/adamw.h"

namespace tamis {

Optimizer::Optimizer(const ParameterTable& table)
    : Optimizer(Parts{table.range(ParameterGroup::kModel), table.range(ParameterGroup::kIndexer),
                      table.range(ParameterGroup::kBias)}) {}

Optimizer::Optimizer(const Parts& parts) {
  for (const ParameterGroup group : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    const auto size = static_cast<size_t>(parts[static_cast<size_t>(group)].size());
    first(group).resize(size);
    second(group).resize(size);
  }
}

void Optimizer::step(KernelContext& context, ParameterGroup group, const AdamwSettings& settings,
                     double norm, float* w, const float* g) {
  if (!std::isfinite(norm)) return;
  AdamwArgs a;
  a.w = w;
  a.g = g;
  a.m = first(group).data();
  a.v = second(group).data();
  a.n = static_cast<int64_t>(first(group).size());
  a.step = ++clock(group);
  a.learning_rate = settings.learning_rate;
  a.beta1 = settings.beta1;
  a.beta2 = settings.beta2;
  a.eps = settings.eps;
  a.decay = settings.decay;
  if (settings.clip > 0 && norm > settings.clip) a.gradient_scale = settings.clip / norm;
  adamw(context, a);
}

void update_router_biases(const ParameterTable& table,
                          const std::vector<std::vector<int64_t>>& load, double gamma,
                          float* weights) {
  for (size_t l = 0; l < table.layers().size(); ++l) {
    const LayerSlots& s = table.layers()[l];
    if (s.router_bias < 0) continue;
    const std::vector<int64_t>& own = load[l];
    int64_t total = 0;
    for (const int64_t n : own) total += n;
    const auto experts = static_cast<int64_t>(own.size());
    for (size_t e = 0; e < own.size(); ++e) {
      // Compared as integers: mean = total / experts.
      const int64_t above = total - own[e] * experts;
      const double sign = above > 0 ? 1 : above < 0 ? -1 : 0;
      weights[s.router_bias + static_cast<int64_t>(e)] += static_cast<float>(gamma * sign);
    }
  }
}

}  // namespace tamis
