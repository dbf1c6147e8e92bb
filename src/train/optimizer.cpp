#include "train/optimizer.h"

#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/memory.h"

namespace tamis {

Optimizer::Optimizer(KernelContext& context, const ParameterTable& table)
    : Optimizer(context,
                Parts{table.range(ParameterGroup::kModel), table.range(ParameterGroup::kIndexer),
                      table.range(ParameterGroup::kBias)}) {}

Optimizer::Optimizer(KernelContext& context, const Parts& parts) {
  for (const ParameterGroup group : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    const int64_t size = parts[static_cast<size_t>(group)].size();
    for (Buffer<float>* moments : {&first(group), &second(group)}) {
      zero(context, moments->resize(context, size), size * static_cast<int64_t>(sizeof(float)));
    }
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
  a.n = first(group).size();
  a.step = ++clock(group);
  a.learning_rate = settings.learning_rate;
  a.beta1 = settings.beta1;
  a.beta2 = settings.beta2;
  a.eps = settings.eps;
  a.decay = settings.decay;
  if (settings.clip > 0 && norm > settings.clip) a.gradient_scale = settings.clip / norm;
  adamw(context, a);
}

void update_router_biases(KernelContext& context, const ParameterTable& table,
                          const std::vector<std::vector<int64_t>>& load, double gamma,
                          float* weights) {
  const ParameterTable::Range range = table.range(ParameterGroup::kBias);
  std::vector<float> biases(static_cast<size_t>(range.size()));
  const int64_t bytes = range.size() * static_cast<int64_t>(sizeof(float));
  get(context, biases.data(), weights + range.begin, bytes);
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
      biases[static_cast<size_t>(s.router_bias - range.begin) + e] +=
          static_cast<float>(gamma * sign);
    }
  }
  put(context, weights + range.begin, biases.data(), bytes);
}

}  // namespace tamis
