#include <algorithm>
#include <numeric>

#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/topk/topk_impl.h"

namespace tamis {

void indexer_select_reference(KernelContext& context, const IndexerSelectArgs& a) {
  context.pool().run(a.in.tokens.num_tokens, [&](int64_t t, int thread) {
    const int64_t visible = a.in.tokens.position[t] + 1;
    int32_t* out = a.indices + t * a.k;
    bool clean = true;
    if (visible <= a.k) {
      std::iota(out, out + visible, 0);
      std::fill(out + visible, out + a.k, -1);
    } else {
      float* key = context.scratch(thread, 0, a.in.kv.layout.index_dim);
      float* scores = context.scratch(thread, 1, visible);
      indexer_row_reference(a.in, t, 0, visible, key, scores);
      clean = topk_row_reference(scores, visible, a.k, out);
    }
    a.has_nan[t] = clean ? 0 : 1;
  });
}

}  // namespace tamis
