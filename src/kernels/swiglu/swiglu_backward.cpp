#include "kernels/swiglu/swiglu_backward.h"

#include <cmath>

#include "kernels/swiglu/swiglu_backward_impl.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

template <typename T>
void reference(KernelContext& context, const SwigluBackwardArgs<T>& a) {
  context.pool().run(a.rows, [&](int64_t r, int) {
    for (int64_t i = r * a.width; i < (r + 1) * a.width; ++i) {
      const T g = a.gate[i], u = a.up[i], dy = a.dy[i];
      const T s = 1 / (1 + std::exp(-g));
      const T dgate = dy * u * s * (1 + g * (1 - s)), dup = dy * g * s;
      if (a.dgate_bf16 != nullptr) {
        const int64_t at = a.bf16_stride == 0 ? i : r * a.bf16_stride + i - r * a.width;
        a.dgate_bf16[at] = float_to_bf16(static_cast<float>(dgate));
        a.dup_bf16[at] = float_to_bf16(static_cast<float>(dup));
      } else {
        a.dgate[i] = dgate;
        a.dup[i] = dup;
      }
    }
  });
}

template <typename T>
constexpr Implementation<SwigluBackwardArgs<T>> kList[] = {
    {"reference", [](const SwigluBackwardArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<SwigluBackwardArgs<float>> kList<float>[] = {
    {"cuda", [](const SwigluBackwardArgs<float>&) { return true; }, swiglu_backward_cuda},
    {"reference", [](const SwigluBackwardArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void swiglu_backward(KernelContext& context, const SwigluBackwardArgs<T>& args) {
  dispatch<SwigluBackwardArgs<T>>(context, "swiglu_backward", kList<T>, args);
}

template void swiglu_backward(KernelContext&, const SwigluBackwardArgs<float>&);
template void swiglu_backward(KernelContext&, const SwigluBackwardArgs<double>&);

}  // namespace tamis
