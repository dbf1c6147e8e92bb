// The bits of a selection straight from its scores, without a list of its rows: a warp a token,
// whose scores stay in registers as integers of the same order. The k-th greatest is found bit by
// bit from the top: at each bit the warp counts how many reach the number with it. Of those equal
// to it the first positions are taken, so the selection is topk's. Bound by the counting.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 128;
constexpr uint32_t kAll = 0xFFFFFFFFu;
constexpr int kLongest = 4096;  // 128 keys a thread

struct Rows {
  const float* scores;  // [tokens, stride]; none of rows of at most k keys
  int64_t stride, tokens, k;
  const int32_t* position;  // [tokens]
  uint64_t* bits;           // [words][bits_stride], at the first of the tokens
  int64_t bits_stride, words;
};

// Bits [0, n) of a word.
__device__ inline uint64_t first_bits(int n) {
  return n >= 64 ? ~uint64_t{0} : n <= 0 ? 0 : (uint64_t{1} << n) - 1;
}

template <int kEach>
__global__ void __launch_bounds__(kThreads, kEach > 64 ? 3 : 5) bits_of_scores(const Rows r) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (row >= r.tokens) return;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int length = r.position[row] + 1, steps = (length + 31) / 32;
  uint64_t* to = r.bits + row;
  if (length <= r.k) {
    for (int w = lane; w < r.words; w += 32) to[w * r.bits_stride] = first_bits(length - w * 64);
    return;
  }
  const float* scores = r.scores + row * r.stride;
  const auto k = static_cast<int>(r.k);
  uint32_t key[kEach], low = kAll, high = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    key[i] = 0;
    if (i >= steps) continue;
    const int s = i * 32 + lane;
    if (s >= length) continue;  // 0 at the end, which is chosen last
    key[i] = key_of(scores[s]);
    low = min(low, key[i]);
    high = max(high, key[i]);
  }
  low = __reduce_min_sync(kAll, low);
  high = __reduce_max_sync(kAll, high);
  // `cut`: the greatest number that at least k keys reach.
  const auto reach = [&](uint32_t least) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i < steps) count += key[i] >= least ? 1 : 0;
    }
    return __reduce_add_sync(kAll, count);
  };
  uint32_t cut = high;
  bool exact = false;  // k keys reach it, no more
  if (low != high) {
    const int top = 31 - __clz(static_cast<int>(low ^ high));
    cut = top == 31 ? 0 : high >> (top + 1) << (top + 1);
    for (int bit = top; bit >= 0 && !exact; --bit) {
      const uint32_t next = cut | uint32_t{1} << bit;
      const int count = reach(next);
      if (count >= k) cut = next;
      exact = count == k;
    }
  }
  // With a cut of 0 every key reaches it, those past the end as well.
  int ties = exact ? 0 : k - (cut == kAll ? 0 : reach(cut + 1));
  uint64_t mine[(kEach / 2 + 31) / 32] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (i >= steps) continue;
    const bool tied = !exact && key[i] == cut;
    const uint32_t tied_lanes = __ballot_sync(kAll, tied);
    const bool first = tied && __popc(tied_lanes & ((1u << lane) - 1)) < ties;
    ties = max(0, ties - __popc(tied_lanes));
    const uint32_t chosen = __ballot_sync(kAll, exact ? key[i] >= cut : key[i] > cut || first);
    if (lane == i / 2 % 32) mine[i / 64] |= uint64_t{chosen} << (i % 2 * 32);
  }
#pragma unroll
  for (int j = 0; j < (kEach / 2 + 31) / 32; ++j) {
    if (j * 32 + lane < r.words) to[(j * 32 + lane) * r.bits_stride] = mine[j];
  }
}

template <int kEach>
void run(KernelContext& context, const Rows& r) {
  bits_of_scores<kEach><<<static_cast<unsigned>((r.tokens * 32 + kThreads - 1) / kThreads),
                          kThreads, 0, stream_of(context)>>>(r);
  check_launch("indexer_select_mask");
}

}  // namespace

bool select_mask_supports(const SelectMaskArgs& args) {
  const IndexerSelectTrainArgs& a = args.select;
  return (a.sequences.position == nullptr ? a.tokens : a.sequences.longest) <= kLongest;
}

void select_mask_cuda(KernelContext& context, const SelectMaskArgs& args) {
  const IndexerSelectTrainArgs& a = args.select;
  if (a.tokens == 0) return;
  for_each_scores(context, a, [&](const TrainScoreRows& rows) {
    const Rows r{rows.scores, rows.stride, rows.tokens, a.k, rows.position, args.bits + rows.first,
                 args.stride, args.words};
    if (rows.longest <= 512) return run<16>(context, r);
    if (rows.longest <= 1024) return run<32>(context, r);
    if (rows.longest <= 2048) return run<64>(context, r);
    run<128>(context, r);
  });
  mask_tiles_cuda(context,
                  {nullptr, a.tokens, a.k, a.sequences, args.bits, args.stride, args.words});
}

}  // namespace tamis
