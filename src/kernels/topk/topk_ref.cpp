#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/topk/topk_impl.h"

namespace tamis {

bool topk_row_reference(const float* scores, int64_t length, int64_t k, int32_t* indices) {
  std::vector<int32_t> order(static_cast<size_t>(length));
  std::iota(order.begin(), order.end(), 0);
  const auto better = [scores](int32_t a, int32_t b) {
    const float x = scores[a], y = scores[b];
    if (std::isnan(x) || std::isnan(y)) {
      return std::isnan(x) != std::isnan(y) ? std::isnan(y) : a < b;
    }
    return x != y ? x > y : a < b;
  };
  std::sort(order.begin(), order.end(), better);
  const int64_t n = std::min(k, length);
  std::copy_n(order.begin(), n, indices);
  std::sort(indices, indices + n);
  std::fill(indices + n, indices + k, -1);
  return std::none_of(scores, scores + length, [](float x) { return std::isnan(x); });
}

void topk_reference(KernelContext& context, const TopkArgs& a) {
  context.pool().run(a.rows, [&](int64_t r, int) {
    const bool clean =
        topk_row_reference(a.scores + r * a.score_stride, a.lengths[r], a.k, a.indices + r * a.k);
    if (a.has_nan != nullptr) a.has_nan[r] = clean ? 0 : 1;
  });
}

}  // namespace tamis
