#include "kernels/cross_entropy/cross_entropy_backward.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy/cross_entropy_backward_impl.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

template <typename T>
void backward_row(const CrossEntropyBackwardArgs<T>& a, int64_t r) {
  T* x = a.logits + r * a.vocabulary;
  const int32_t target = a.targets[r];
  if (target < 0) {
    std::fill_n(x, a.vocabulary, T{0});
    a.loss[r] = 0;
    return;
  }
  const T top = *std::max_element(x, x + a.vocabulary), at_target = x[target];
  double sum = 0;
  for (int64_t v = 0; v < a.vocabulary; ++v) sum += x[v] = std::exp(x[v] - top);
  const auto scale = static_cast<T>(a.scale / sum);
  for (int64_t v = 0; v < a.vocabulary; ++v) x[v] *= scale;
  x[target] -= static_cast<T>(a.scale);
  a.loss[r] = std::log(sum) + static_cast<double>(top) - at_target;
}

template <typename T>
void reference(KernelContext& context, const CrossEntropyBackwardArgs<T>& a) {
  context.pool().run(a.rows, [&](int64_t r, int) {
    backward_row(a, r);
    if (a.gradient_bf16 == nullptr) return;
    for (int64_t i = r * a.vocabulary; i < (r + 1) * a.vocabulary; ++i) {
      a.gradient_bf16[i] = float_to_bf16(static_cast<float>(a.logits[i]));
    }
  });
}

template <typename T>
constexpr Implementation<CrossEntropyBackwardArgs<T>> kList[] = {
    {"reference", [](const CrossEntropyBackwardArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<CrossEntropyBackwardArgs<float>> kList<float>[] = {
    {"cuda", [](const CrossEntropyBackwardArgs<float>&) { return true; },
     cross_entropy_backward_cuda},
    {"reference", [](const CrossEntropyBackwardArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void cross_entropy_backward(KernelContext& context, const CrossEntropyBackwardArgs<T>& args) {
  dispatch<CrossEntropyBackwardArgs<T>>(context, "cross_entropy_backward", kList<T>, args);
}

template void cross_entropy_backward(KernelContext&, const CrossEntropyBackwardArgs<float>&);
template void cross_entropy_backward(KernelContext&, const CrossEntropyBackwardArgs<double>&);

}  // namespace tamis
