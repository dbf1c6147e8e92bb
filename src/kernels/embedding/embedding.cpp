#include "kernels/embedding/embedding.h"

#include <algorithm>

#include "kernels/embedding/embedding_impl.h"

namespace tamis {
namespace {

void embedding_reference(KernelContext& context, const EmbeddingArgs& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) {
    const int64_t row = a.ids[t] - a.first_id;
    float* y = a.y + t * a.w.cols;
    if (row < 0 || row >= a.w.rows) {
      std::fill_n(y, a.w.cols, -0.0F);  // x + -0 is x for every x
    } else {
      dequantize_row(a.w, row, 0, a.w.cols, y);
    }
  });
}

constexpr Implementation<EmbeddingArgs> kList[] = {
    {"cuda", [](const EmbeddingArgs&) { return true; }, embedding_cuda},
    {"reference", [](const EmbeddingArgs&) { return true; }, embedding_reference},
};

}  // namespace

void embedding(KernelContext& context, const EmbeddingArgs& args) {
  dispatch<EmbeddingArgs>(context, "embedding", kList, args);
}

}  // namespace tamis
