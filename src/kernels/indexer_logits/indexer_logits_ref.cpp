#include <algorithm>
#include <limits>

#include "kernels/indexer_logits/indexer_logits_impl.h"

namespace tamis {

void indexer_row_reference(const IndexerArgs& a, int64_t t, int64_t begin, int64_t end, float* key,
                           float* out) {
  const int64_t dim = a.kv.layout.index_dim;
  const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[t]];
  for (int64_t s = begin; s < end; ++s) {
    read_index_key(a.kv, seq, s, key);
    double score = 0;
    for (int64_t j = 0; j < a.heads; ++j) {
      const float* q = a.q + (t * a.heads + j) * dim;
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * key[d];
      // Written so that a NaN product stays NaN: it must reach the caller, not look like a zero.
      score += static_cast<double>(a.w[t * a.heads + j]) * (dot < 0 ? 0.0 : dot);
    }
    out[s - begin] = static_cast<float>(score);
  }
}

void indexer_logits_reference(KernelContext& context, const IndexerLogitsArgs& args) {
  const IndexerArgs& a = args.in;
  context.pool().run(a.tokens.num_tokens, [&](int64_t t, int thread) {
    float* key = context.scratch(thread, 0, a.kv.layout.index_dim);
    float* row = args.logits + t * args.logits_stride;
    const int64_t visible = a.tokens.position[t] + 1;
    indexer_row_reference(a, t, 0, visible, key, row);
    std::fill(row + visible, row + args.logits_stride, -std::numeric_limits<float>::infinity());
  });
}

}  // namespace tamis
