#include "kernels/moe_permute/moe_permute_backward.h"

#include "kernels/moe_permute/moe_permute_backward_impl.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

template <typename T>
void combine_reference(KernelContext& context, const MoeCombineBackwardArgs<T>& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) {
    const T* dy = a.dy + t * a.width;
    for (int64_t pair = t * a.num_chosen; pair < (t + 1) * a.num_chosen; ++pair) {
      const int64_t row = a.row_of[pair];
      const T* y = a.rows + row * a.width;
      double dot = 0;
      for (int64_t i = 0; i < a.width; ++i) {
        dot += static_cast<double>(dy[i]) * y[i];
        const T d = a.weights[pair] * dy[i];
        if (a.drows_bf16 != nullptr) {
          a.drows_bf16[row * a.width + i] = float_to_bf16(static_cast<float>(d));
        } else {
          a.drows[row * a.width + i] = d;
        }
      }
      a.dweights[pair] = static_cast<T>(dot);
    }
  });
}

template <typename T>
void permute_reference(KernelContext& context, const MoePermuteBackwardArgs<T>& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) {
    T* dx = a.dx + t * a.width;
    for (int64_t pair = t * a.num_chosen; pair < (t + 1) * a.num_chosen; ++pair) {
      const T* row = a.drows + static_cast<int64_t>(a.row_of[pair]) * a.width;
      for (int64_t i = 0; i < a.width; ++i) dx[i] += row[i];
    }
  });
}

template <typename T>
constexpr Implementation<MoeCombineBackwardArgs<T>> kCombine[] = {
    {"reference", [](const MoeCombineBackwardArgs<T>&) { return true; }, combine_reference<T>},
};
template <>
constexpr Implementation<MoeCombineBackwardArgs<float>> kCombine<float>[] = {
    {"cuda", [](const MoeCombineBackwardArgs<float>&) { return true; }, moe_combine_backward_cuda},
    {"reference", [](const MoeCombineBackwardArgs<float>&) { return true; },
     combine_reference<float>},
};
template <typename T>
constexpr Implementation<MoePermuteBackwardArgs<T>> kPermute[] = {
    {"reference", [](const MoePermuteBackwardArgs<T>&) { return true; }, permute_reference<T>},
};
template <>
constexpr Implementation<MoePermuteBackwardArgs<float>> kPermute<float>[] = {
    {"cuda", [](const MoePermuteBackwardArgs<float>&) { return true; }, moe_permute_backward_cuda},
    {"reference", [](const MoePermuteBackwardArgs<float>&) { return true; },
     permute_reference<float>},
};

}  // namespace

template <typename T>
void moe_combine_backward(KernelContext& context, const MoeCombineBackwardArgs<T>& args) {
  dispatch<MoeCombineBackwardArgs<T>>(context, "moe_combine_backward", kCombine<T>, args);
}

template <typename T>
void moe_permute_backward(KernelContext& context, const MoePermuteBackwardArgs<T>& args) {
  dispatch<MoePermuteBackwardArgs<T>>(context, "moe_permute_backward", kPermute<T>, args);
}

template void moe_combine_backward(KernelContext&, const MoeCombineBackwardArgs<float>&);
template void moe_combine_backward(KernelContext&, const MoeCombineBackwardArgs<double>&);
template void moe_permute_backward(KernelContext&, const MoePermuteBackwardArgs<float>&);
template void moe_permute_backward(KernelContext&, const MoePermuteBackwardArgs<double>&);

}  // namespace tamis
