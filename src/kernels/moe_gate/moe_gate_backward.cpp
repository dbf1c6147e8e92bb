#include "kernels/moe_gate/moe_gate_backward.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels/moe_gate/moe_gate_backward_impl.h"

namespace tamis {
namespace {

using Doubles = std::vector<double>;

template <typename T>
Doubles scores_of(const MoeGateBackwardArgs<T>& a, int64_t t) {
  Doubles s;
  for (int64_t e = 0; e < a.experts; ++e) {
    s.push_back(1 / (1 + std::exp(-static_cast<double>(a.logits[t * a.experts + e]))));
  }
  return s;
}

template <typename T>
void weights_part(const MoeGateBackwardArgs<T>& a, int64_t t, const Doubles& s, Doubles& ds) {
  const int32_t* ids = a.ids + t * a.num_chosen;
  const T* dw = a.dweights + t * a.num_chosen;
  double total = 1e-20, pull = 0;
  for (int64_t i = 0; i < a.num_chosen; ++i) {
    total += s[static_cast<size_t>(ids[i])];
    pull += dw[i] * s[static_cast<size_t>(ids[i])];
  }
  const double divisor = a.norm_topk_prob ? total : 1;
  if (!a.norm_topk_prob) pull = 0;
  for (int64_t i = 0; i < a.num_chosen; ++i) {
    ds[static_cast<size_t>(ids[i])] += a.routed_scaling_factor / divisor * (dw[i] - pull / divisor);
  }
}

// sum_e load_e s'_e of one token; its gradient to ds.
double balance_part(const Doubles& load, const Doubles& s, double scale, Doubles& ds) {
  double total = 0, mean = 0;
  for (size_t e = 0; e < s.size(); ++e) total += s[e];
  for (size_t e = 0; e < s.size(); ++e) mean += load[e] * s[e] / total;
  for (size_t e = 0; e < s.size(); ++e) ds[e] += scale * (load[e] - mean) / total;
  return mean;
}

template <typename T>
Doubles load_of(const MoeGateBackwardArgs<T>& a) {
  Doubles load(static_cast<size_t>(a.experts));
  const double one = static_cast<double>(a.experts) / static_cast<double>(a.num_chosen * a.tokens);
  for (int64_t i = 0; i < a.tokens * a.num_chosen; ++i) load[static_cast<size_t>(a.ids[i])] += one;
  return load;
}

template <typename T>
void reference(KernelContext& context, const MoeGateBackwardArgs<T>& a) {
  const Doubles load = load_of(a);
  Doubles balance(static_cast<size_t>(a.tokens));
  const auto tokens = static_cast<double>(a.tokens);
  context.pool().run(a.tokens, [&](int64_t t, int) {
    const Doubles s = scores_of(a, t);
    Doubles ds(s.size());
    weights_part(a, t, s, ds);
    balance[static_cast<size_t>(t)] = balance_part(load, s, a.balance_scale / tokens, ds);
    for (size_t e = 0; e < s.size(); ++e) {
      a.dlogits[t * a.experts + static_cast<int64_t>(e)] =
          static_cast<T>(ds[e] * s[e] * (1 - s[e]));
    }
  });
  if (a.balance == nullptr) return;
  *a.balance = 0;
  for (const double b : balance) *a.balance += b / tokens;
}

template <typename T>
constexpr Implementation<MoeGateBackwardArgs<T>> kList[] = {
    {"reference", [](const MoeGateBackwardArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<MoeGateBackwardArgs<float>> kList<float>[] = {
    {"cuda", [](const MoeGateBackwardArgs<float>&) { return true; }, moe_gate_backward_cuda},
    {"reference", [](const MoeGateBackwardArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void moe_gate_backward(KernelContext& context, const MoeGateBackwardArgs<T>& args) {
  dispatch<MoeGateBackwardArgs<T>>(context, "moe_gate_backward", kList<T>, args);
}

template <typename T>
void moe_gate_backwards(KernelContext& context, std::span<const MoeGateBackwardArgs<T>> args) {
  if constexpr (std::is_same_v<T, float>) {
    if (context.backend() == Backend::kCuda) {
      context.note("moe_gate_backward", "cuda");
      return moe_gate_backwards_cuda(context, args);
    }
  }
  for (const MoeGateBackwardArgs<T>& a : args) moe_gate_backward(context, a);
}

template void moe_gate_backward(KernelContext&, const MoeGateBackwardArgs<float>&);
template void moe_gate_backward(KernelContext&, const MoeGateBackwardArgs<double>&);
template void moe_gate_backwards(KernelContext&, std::span<const MoeGateBackwardArgs<float>>);
template void moe_gate_backwards(KernelContext&, std::span<const MoeGateBackwardArgs<double>>);

}  // namespace tamis
