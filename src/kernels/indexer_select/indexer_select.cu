// indexer_select on CUDA: scores of as many tokens as fit in 128 MiB of scratch, then their top-k,
// until all are done. A row of scores is written once and read once; it never exceeds the scratch.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/rope/rope_impl.h"
#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr int64_t kScratchBytes = int64_t{128} << 20;
constexpr int64_t kTokenMultiple = 8;  // tokens that the score kernel handles together

}  // namespace

void indexer_select_cuda(KernelContext& context, const IndexerSelectArgs& args) {
  const IndexerArgs& in = args.in;
  const int64_t n = in.tokens.num_tokens;
  if (n == 0) return;
  if (in.tokens.max_context < 1) {
    throw UsageError("[indexer_select] tokens.max_context is not set: the cuda back end needs it");
  }
  // Rows start on 16 bytes, so that top-k reads four scores at once.
  const int64_t stride = (in.tokens.max_context + 3) / 4 * 4;
  const int64_t fit = kScratchBytes / (stride * 4) / kTokenMultiple * kTokenMultiple;
  const int64_t chunk = std::min(n, std::max(kTokenMultiple, fit));
  const bool scored = in.tokens.max_context > args.k;
  auto* scores =
      scored ? static_cast<float*>(device_scratch(context, 0, chunk * stride * 4)) : nullptr;
  RopeArgs rope = args.query_rope;
  if (rope.dim > 0 && scored && !indexer_scores_rotate(in, rope)) {
    rope_cuda(context, rope);
    rope = {};
  }
  for (int64_t first = 0; first < n; first += chunk) {
    IndexerArgs part = in;
    part.tokens.num_tokens = std::min(chunk, n - first);
    part.tokens.sequence += first;
    part.tokens.position += first;
    part.q += first * in.heads * in.kv.layout.index_dim;
    part.w += first * in.heads;
    if (scored) {
      IndexerScores to{scores, stride, in.tokens.max_context, args.k, false, rope};
      to.rope.cos += first * (rope.dim / 2);
      to.rope.sin += first * (rope.dim / 2);
      indexer_scores_cuda(context, part, to);
    }
    topk_cuda_run(
        context,
        {scores, stride, part.tokens.num_tokens, part.tokens.position, args.k,
         args.indices + first * args.k, args.has_nan == nullptr ? nullptr : args.has_nan + first},
        {1, true});
  }
}

}  // namespace tamis
