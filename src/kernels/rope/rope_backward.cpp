#include "kernels/rope/rope_backward.h"

#include "kernels/rope/rope_backward_impl.h"

namespace tamis {
namespace {

template <typename T>
void turn_head(const RopeTurnArgs<T>& a, T* x, const T* cos, const T* sin) {
  const int64_t half = a.dim / 2;
  const bool interleaved = a.layout == RopeLayout::kInterleaved;
  for (int64_t i = 0; i < half; ++i) {
    T& first = x[interleaved ? 2 * i : i];
    T& second = x[interleaved ? 2 * i + 1 : i + half];
    const T s = a.back ? -sin[i] : sin[i], p = first, q = second;
    first = p * cos[i] - q * s;
    second = q * cos[i] + p * s;
  }
}

template <typename T>
void reference(KernelContext& context, const RopeTurnArgs<T>& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) {
    for (int64_t h = 0; h < a.heads; ++h) {
      turn_head(a, a.x + t * a.token_stride + h * a.head_stride, a.cos + t * (a.dim / 2),
                a.sin + t * (a.dim / 2));
    }
  });
}

template <typename T>
constexpr Implementation<RopeTurnArgs<T>> kList[] = {
    {"reference", [](const RopeTurnArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<RopeTurnArgs<float>> kList<float>[] = {
    {"cuda", [](const RopeTurnArgs<float>&) { return true; }, rope_turn_cuda},
    {"reference", [](const RopeTurnArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void rope_turn(KernelContext& context, const RopeTurnArgs<T>& args) {
  dispatch<RopeTurnArgs<T>>(context, "rope_backward", kList<T>, args);
}

template void rope_turn(KernelContext&, const RopeTurnArgs<float>&);
template void rope_turn(KernelContext&, const RopeTurnArgs<double>&);

}  // namespace tamis
