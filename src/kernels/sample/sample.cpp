#include "kernels/sample/sample.h"

#include <algorithm>

#include "kernels/sample/sample_impl.h"
#include "kernels/sample/sample_weight.h"

namespace tamis {

// With top-k or top-p the best ones lie in front, best first, before the draw.
int32_t draw_token(std::vector<SampleCandidate>& all, const SampleRow& row) {
  using C = SampleCandidate;
  const auto better = [](const C& a, const C& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const C best = *std::min_element(all.begin(), all.end(), better);
  if (row.temperature == 0) return best.id;
  const auto weight = [&](const C& c) {
    return sample_weight(c.logit, best.logit, row.temperature);
  };
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < all.size()) {
    const auto end = all.begin() + row.top_k;
    std::nth_element(all.begin(), end, all.end(), better);
    all.erase(end, all.end());
    std::sort(all.begin(), all.end(), better);
  }
  if (row.min_p > 0) {
    const uint64_t least = least_weight(row.min_p);
    std::erase_if(all, [&](const C& c) { return weight(c) < least; });
  }
  uint64_t kept = 0;
  for (const C& c : all) kept += weight(c);
  if (kept == 0) return best.id;  // logits that are not finite
  size_t count = all.size();
  if (row.top_p < 1) {
    // A heap gives the best ones in order; few are needed where the model is sure.
    const uint64_t wanted = wanted_weight(row.top_p, kept);
    const auto worse = [&](const C& a, const C& b) { return better(b, a); };
    std::make_heap(all.begin(), all.end(), worse);
    kept = 0;
    for (count = 0; count < all.size() && kept < wanted; ++count) {
      std::pop_heap(all.begin(), all.end() - static_cast<int64_t>(count), worse);
      kept += weight(all[all.size() - 1 - count]);
    }
    std::reverse(all.begin(), all.end());
  }
  const uint64_t target = scaled_random(row.random, kept);
  uint64_t before = 0;
  for (size_t i = 0; i < count; ++i) {
    before += weight(all[i]);
    if (before > target) return all[i].id;
  }
  return best.id;
}

void sample_tokens(KernelContext& context, const SampleTokensArgs& args) {
  context.note("sample_tokens", "cuda");
  sample_tokens_cuda(context, args);
}

}  // namespace tamis
