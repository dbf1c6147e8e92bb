// The scores of as many tokens as fit in 128 MiB of scratch memory (indexer_train_scores.cu,
// indexer_train_filter.cu), then their top-k, until all are done; then positions become rows.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr int kScores = 0, kPositions = 6;  // slots of scratch memory that topk leaves alone
constexpr int kThreads = 256;

__global__ void positions_kernel(int64_t tokens, int32_t* position) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t < tokens) position[t] = static_cast<int32_t>(t);
}

// Positions within a sequence become rows; `first`: the token of row 0.
__global__ void rows_kernel(const int32_t* position, int64_t first, int64_t k, int64_t count,
                            int32_t* indices) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count || indices[i] < 0) return;
  const int64_t t = i / k;
  indices[i] += static_cast<int32_t>(first + t) - position[t];
}

unsigned blocks_of(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

void for_each_scores(KernelContext& context, const IndexerSelectTrainArgs& args,
                     FunctionRef<void(const TrainScoreRows&)> body) {
  const int64_t n = args.tokens;
  const int32_t* position = args.sequences.position;
  const int64_t longest = position == nullptr ? n : args.sequences.longest;
  if (position == nullptr) {
    auto* count = static_cast<int32_t*>(device_scratch(context, kPositions, n * int64_t{4}));
    positions_kernel<<<blocks_of(n), kThreads, 0, stream_of(context)>>>(n, count);
    check_launch("indexer_select_train (positions)");
    position = count;
  }
  // Rows start on 16 bytes, so that top-k reads four scores at once.
  constexpr int64_t kFloats = int64_t{1} << 25;
  const int64_t stride = (longest + 3) / 4 * 4, chunk = std::clamp<int64_t>(kFloats / stride, 1, n);
  const bool scored = longest > args.k;
  float* scores = nullptr;
  const bool filters = scored && indexer_train_filters(context, args);
  if (filters) indexer_train_filter_keys(context, args);
  if (scored) {
    scores = static_cast<float*>(device_scratch(context, kScores, chunk * stride * int64_t{4}));
  }
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t count = std::min(chunk, n - first);
    const TrainScores of{first, count, longest};
    if (filters) {
      indexer_train_filter(context, args, of, scores, stride);
    } else if (scored) {
      indexer_train_scores(context, args, of, scores, stride);
    }
    body({scores, stride, first, count, longest, position + first});
  }
}

void indexer_select_train_cuda(KernelContext& context, const IndexerSelectTrainArgs& args) {
  const int64_t n = args.tokens;
  if (n == 0) return;
  for_each_scores(context, args, [&](const TrainScoreRows& r) {
    int32_t* indices = args.indices + r.first * args.k;
    topk_cuda_run(context, {r.scores, r.stride, r.tokens, r.position, args.k, indices, nullptr},
                  {1, true});
    if (args.sequences.position == nullptr) return;
    rows_kernel<<<blocks_of(r.tokens * args.k), kThreads, 0, stream_of(context)>>>(
        r.position, r.first, args.k, r.tokens * args.k, indices);
    check_launch("indexer_select_train (rows)");
  });
}

}  // namespace tamis
