#include "kernels/embedding/embedding_backward.h"

#include <algorithm>

#include "kernels/embedding/embedding_backward_impl.h"

namespace tamis {
namespace {

// A task owns columns, so tokens meet in their order whatever the threads do.
template <typename T>
void reference(KernelContext& context, const EmbeddingBackwardArgs<T>& a) {
  constexpr int64_t kColumns = 64;
  context.pool().run((a.width + kColumns - 1) / kColumns, [&](int64_t task, int) {
    const int64_t begin = task * kColumns, end = std::min(begin + kColumns, a.width);
    for (int64_t t = 0; t < a.tokens; ++t) {
      T* dw = a.dw + a.ids[t] * a.width;
      const T* dy = a.dy + t * a.width;
      for (int64_t i = begin; i < end; ++i) dw[i] += dy[i];
    }
  });
}

template <typename T>
constexpr Implementation<EmbeddingBackwardArgs<T>> kList[] = {
    {"reference", [](const EmbeddingBackwardArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<EmbeddingBackwardArgs<float>> kList<float>[] = {
    {"cuda", [](const EmbeddingBackwardArgs<float>&) { return true; }, embedding_backward_cuda},
    {"reference", [](const EmbeddingBackwardArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void embedding_backward(KernelContext& context, const EmbeddingBackwardArgs<T>& args) {
  dispatch<EmbeddingBackwardArgs<T>>(context, "embedding_backward", kList<T>, args);
}

template void embedding_backward(KernelContext&, const EmbeddingBackwardArgs<float>&);
template void embedding_backward(KernelContext&, const EmbeddingBackwardArgs<double>&);

}  // namespace tamis
