// Selection by nth_element on integer keys: O(length), no allocation.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

// An unsigned key in the order of the scores: larger score, larger key. NaN becomes 0, below -inf.
uint32_t order_key(float x) {
  if (std::isnan(x)) return 0;
  const uint32_t u = std::bit_cast<uint32_t>(x == 0.0f ? 0.0f : x);  // -0 counts as +0
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

}  // namespace

bool topk_row(const float* scores, int64_t length, int64_t k, float* work, int32_t* indices) {
  const int64_t n = std::min(k, length);
  bool clean = true;
  for (int64_t i = 0; i < length; ++i) clean &= !std::isnan(scores[i]);
  if (n == length) {
    for (int64_t i = 0; i < n; ++i) indices[i] = static_cast<int32_t>(i);
  } else {
    auto* keys = reinterpret_cast<uint32_t*>(work);
    for (int64_t i = 0; i < length; ++i) keys[i] = order_key(scores[i]);
    std::nth_element(keys, keys + (n - 1), keys + length, std::greater<>());
    const uint32_t threshold = keys[n - 1];
    int64_t above = 0;
    for (int64_t i = 0; i < n; ++i) above += keys[i] > threshold ? 1 : 0;
    int64_t ties = n - above, out = 0;  // of the ties at the threshold the earliest are taken
    for (int64_t i = 0; i < length && out < n; ++i) {
      const uint32_t key = order_key(scores[i]);
      if (key > threshold || (key == threshold && ties > 0)) {
        if (key == threshold) --ties;
        indices[out++] = static_cast<int32_t>(i);
      }
    }
  }
  std::fill(indices + n, indices + k, -1);
  return clean;
}

void topk_cpu(KernelContext& context, const TopkArgs& a) {
  context.pool().run(a.rows, [&](int64_t r, int thread) {
    float* work = context.scratch(thread, 0, a.lengths[r]);
    const bool clean =
        topk_row(a.scores + r * a.score_stride, a.lengths[r], a.k, work, a.indices + r * a.k);
    if (a.has_nan != nullptr) a.has_nan[r] = clean ? 0 : 1;
  });
}

}  // namespace tamis
