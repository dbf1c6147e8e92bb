#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy/cross_entropy_impl.h"

namespace tamis {
namespace {

void cross_entropy_reference(KernelContext& context, const CrossEntropyArgs& a) {
  context.pool().run(a.rows, [&](int64_t r, int) {
    const float* x = a.logits + r * a.vocabulary;
    const double top = *std::max_element(x, x + a.vocabulary);
    double sum = 0;
    for (int64_t v = 0; v < a.vocabulary; ++v) sum += std::exp(x[v] - top);
    a.loss[r] = std::log(sum) + top - x[a.targets[r]];
  });
}

constexpr Implementation<CrossEntropyArgs> kList[] = {
    {"cuda", [](const CrossEntropyArgs&) { return true; }, cross_entropy_cuda},
    {"reference", [](const CrossEntropyArgs&) { return true; }, cross_entropy_reference},
};

}  // namespace

void cross_entropy(KernelContext& context, const CrossEntropyArgs& args) {
  dispatch<CrossEntropyArgs>(context, "cross_entropy", kList, args);
}

}  // namespace tamis
