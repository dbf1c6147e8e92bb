#include "kernels/moe_gate/moe_gate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/moe_gate/moe_gate_impl.h"

namespace tamis {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

void scores_of(const MoeGateArgs& a, const float* logits, float* s) {
  if (!a.softmax) {
    for (int64_t e = 0; e < a.experts; ++e) s[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float top = *std::max_element(logits, logits + a.experts);
  double sum = 0;
  for (int64_t e = 0; e < a.experts; ++e) sum += s[e] = std::exp(logits[e] - top);
  for (int64_t e = 0; e < a.experts; ++e) s[e] = static_cast<float>(s[e] / sum);
}

// The index of the largest of b[0..n), the first of equals; 0 if all are NaN or -inf.
int64_t argmax(const float* b, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i) {
    if (b[i] > b[best] || std::isnan(b[best])) best = i;
  }
  return best;
}

float two_largest(const float* b, int64_t n) {
  float first = kNone, second = kNone;
  for (int64_t i = 0; i < n; ++i) {
    if (b[i] > first) {
      second = first;
      first = b[i];
    } else if (b[i] > second) {
      second = b[i];
    }
  }
  return n == 1 ? first : first + second;
}

// Sets b to -inf outside the topk_group best groups.
void keep_groups(const MoeGateArgs& a, float* b, float* group) {
  if (a.groups <= 1) return;
  const int64_t size = a.experts / a.groups;
  for (int64_t g = 0; g < a.groups; ++g) group[g] = two_largest(b + g * size, size);
  float* kept = group + a.groups;
  std::fill_n(kept, a.groups, 0.0f);
  for (int64_t i = 0; i < a.topk_group; ++i) {
    const int64_t g = argmax(group, a.groups);
    kept[g] = 1;
    group[g] = kNone;
  }
  for (int64_t g = 0; g < a.groups; ++g) {
    if (kept[g] == 0) std::fill_n(b + g * size, size, kNone);
  }
}

void route(const MoeGateArgs& a, int64_t t, float* work) {
  float *s = work, *b = work + a.experts, *group = work + 2 * a.experts;
  scores_of(a, a.logits + t * a.experts, s);
  for (int64_t e = 0; e < a.experts; ++e) b[e] = s[e] + (a.bias != nullptr ? a.bias[e] : 0.0f);
  keep_groups(a, b, group);
  int32_t* ids = a.ids + t * a.num_chosen;
  for (int64_t i = 0; i < a.num_chosen; ++i) {
    ids[i] = static_cast<int32_t>(argmax(b, a.experts));
    b[ids[i]] = std::numeric_limits<float>::quiet_NaN();  // taken
  }
  std::sort(ids, ids + a.num_chosen);
  double sum = 0;
  for (int64_t i = 0; i < a.num_chosen; ++i) sum += s[ids[i]];
  const float scale = a.norm_topk_prob ? static_cast<float>(1.0 / (sum + 1e-20)) : 1.0f;
  for (int64_t i = 0; i < a.num_chosen; ++i) {
    a.weights[t * a.num_chosen + i] = s[ids[i]] * scale * a.routed_scaling_factor;
  }
}

void moe_gate_reference(KernelContext& context, const MoeGateArgs& a) {
  context.pool().run(a.tokens, [&](int64_t t, int thread) {
    route(a, t, context.scratch(thread, 0, 2 * a.experts + 2 * a.groups));
  });
}

constexpr Implementation<MoeGateArgs> kList[] = {
    {"cuda", moe_gate_cuda_supports, moe_gate_cuda},
    {"reference", [](const MoeGateArgs&) { return true; }, moe_gate_reference},
};

}  // namespace

void moe_gate(KernelContext& context, const MoeGateArgs& args) {
  dispatch<MoeGateArgs>(context, "moe_gate", kList, args);
}

}  // namespace tamis
