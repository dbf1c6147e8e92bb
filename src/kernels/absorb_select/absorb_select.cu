// absorb_select on CUDA, for one token: blocks of 256 threads. First those of the product, two
// groups of 128 columns of a head each; then one for each rotation beside it; then one for each
// page of keys. top-k comes after. Bound by latency.
#include "kernels/absorb_select/absorb_select_impl.h"
#include "kernels/indexer_logits/indexer_few.cuh"
#include "kernels/per_head_linear/transposed.cuh"
#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = indexer_few::kThreads, kGroups = kThreads / transposed::kThreads;
constexpr int kBlockColumns = kGroups * transposed::kColumns;

struct Work {
  PerHeadLinearArgs absorb;
  Several<RopeArgs> beside;
  IndexerArgs in;
  KvRows kv;
  IndexerScores to;
  int column_blocks, product_blocks;  // of a head; of all
};

template <int kDim>
__global__ void __launch_bounds__(kThreads) absorb_scores(const __grid_constant__ Work a) {
  extern __shared__ __align__(16) float shared[];
  const auto block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (block < a.product_blocks) {
    __shared__ __align__(16) transposed::Parts<1> part[kGroups];
    const int group = thread / transposed::kThreads;
    const int64_t first = int64_t{block % a.column_blocks} * kBlockColumns;
    return transposed::multiply_columns<DType::kBF16, 1>(
        a.absorb, block / a.column_blocks, first + group * transposed::kColumns,
        thread % transposed::kThreads, 0, 1, part[group]);
  }
  const int other = block - a.product_blocks;
  if (other < a.beside.count) {
    const RopeArgs& r = a.beside.list[other];
    for (int64_t i = thread; i < r.heads * (r.dim / 2); i += kThreads) rope_pair(r, 0, i);
    return;
  }
  indexer_few::exact_few<kDim>(a.in, a.kv, a.to, 0, other - a.beside.count, shared);
}

}  // namespace

bool absorb_select_cuda_supports(const AbsorbSelectArgs& args) {
  const PerHeadLinearArgs& a = args.absorb;
  const IndexerSelectArgs& s = args.select;
  const bool turns = s.query_rope.dim > 0;
  return a.num_tokens == 1 && s.in.tokens.num_tokens == 1 && a.transposed && a.num_heads > 0 &&
         a.w.cols > 0 && a.beside.size() <= static_cast<size_t>(Several<RopeArgs>::kMost) &&
         (a.w.dtype == DType::kBF16 || a.w.dtype == DType::kF32) && s.in.tokens.max_context > s.k &&
         !indexer_scores_mma_supports(s.in) && indexer_few::takes_few(s.in, kv_rows(s.in.kv)) &&
         (!turns || indexer_scores_rotate(s.in, s.query_rope));
}

void absorb_select_cuda(KernelContext& context, const AbsorbSelectArgs& args) {
  const IndexerSelectArgs& s = args.select;
  const int64_t context_length = s.in.tokens.max_context;
  const int64_t stride = (context_length + 3) / 4 * 4;  // top-k reads four scores at once
  auto* scores = static_cast<float*>(device_scratch(context, 0, stride * 4));
  Work w;
  w.absorb = args.absorb;
  w.absorb.beside = {};
  for (const RopeArgs& r : args.absorb.beside) w.beside.list[w.beside.count++] = r;
  w.in = s.in;
  w.kv = kv_rows(s.in.kv);
  w.to = {scores, stride, context_length, s.k, false, s.query_rope};
  w.column_blocks = static_cast<int>((args.absorb.w.cols + kBlockColumns - 1) / kBlockColumns);
  w.product_blocks = w.column_blocks * static_cast<int>(args.absorb.num_heads);
  const auto pages = static_cast<int>((context_length + kPageTokens - 1) / kPageTokens);
  constexpr int kDim = indexer_few::kUsualDim;
  const auto kernel = indexer_few::is_usual(w.kv) ? absorb_scores<kDim> : absorb_scores<0>;
  const int64_t bytes = indexer_few::few_bytes(static_cast<int>(s.in.kv.layout.index_dim));
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), "absorb_scores");
  kernel<<<static_cast<unsigned>(w.product_blocks + w.beside.count + pages), kThreads,
           static_cast<size_t>(bytes), stream_of(context)>>>(w);
  check_launch("absorb_scores");
  topk_cuda_run(context, {scores, stride, 1, s.in.tokens.position, s.k, s.indices, s.has_nan},
                {1, true});
}

}  // namespace tamis
