// topk for rows of up to 8,192 scores: a block holds all keys of a row in shared memory, in order.
//
// The k-th key is found as choose() of topk_block.cuh does, whose first round is here by itself:
// its bounds are found while the keys come, and the few keys left then are ranked. Then a bit for
// each position says whether it is kept: warp w makes the words w * each .. of 32 positions by
// ballots, lane i keeps the i-th of them, and of keys equal to the cut the first ones stay. The
// numbers of bits before a word say where its positions go, and a warp writes those of a word side
// by side. Many rows: 256 threads, six blocks a multiprocessor, bound by the passes over shared
// memory; one row: 1024 threads, bound by barriers.
#include "kernels/cuda/launch.cuh"
#include "kernels/topk/topk_block.cuh"
#include "kernels/topk/topk_row.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace topk_block;  // this file is another body of that header

constexpr int64_t kShortRow = 4096;

template <typename B>
struct Row {
  uint32_t key[kMostOfRow];
  Search<B> search;
  uint32_t few[32], few_count;
};

// What a thread saw of the row.
struct Seen {
  uint32_t low = kAll, high = 0;
  bool nan = false;
};

// The row's keys to shared memory. Keys past the end are those of NaN.
template <typename B>
__device__ Seen load_keys(const float* row, int64_t length, uint32_t* key) {
  constexpr int kAhead = 4;  // loads of four scores on their way at once
  const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
  Seen seen;
  for (int64_t begin = 4 * threadIdx.x; begin < length; begin += 4 * kAhead * B::kThreads) {
    float4 x[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      x[j] = load4(row, begin + 4 * j * B::kThreads, length, aligned);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t at = begin + 4 * j * B::kThreads;
      if (at >= length) continue;
      const uint4 k = make_uint4(key_of(x[j].x), key_of(x[j].y), key_of(x[j].z), key_of(x[j].w));
      *reinterpret_cast<uint4*>(key + at) = k;
      const uint32_t each[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (at + i >= length) continue;
        seen.low = min(seen.low, each[i]);
        seen.high = max(seen.high, each[i]);
        seen.nan |= each[i] == 0;
      }
    }
  }
  return seen;
}

// choose() of the row's keys. *nan: whether any thread saw one.
template <typename B>
__device__ Cut choose_key(Row<B>& r, const Seen& seen, int64_t length, uint32_t k, bool* nan) {
  Search<B>& s = r.search;
  const uint32_t low_of_warp = __reduce_min_sync(kAll, seen.low);
  const uint32_t high_of_warp = __reduce_max_sync(kAll, seen.high);
  if (threadIdx.x % 32 == 0) {
    s.warp[0][threadIdx.x / 32] = low_of_warp;
    s.warp[1][threadIdx.x / 32] = high_of_warp;
  }
  for (int b = threadIdx.x; b < B::kBins; b += B::kThreads) s.bins[b] = 0;
  if (threadIdx.x == 0) r.few_count = 0;
  *nan = __syncthreads_or(seen.nan) != 0;  // keys, bounds and bins are there
  uint32_t low = __reduce_min_sync(kAll, s.warp[0][threadIdx.x % B::kWarps]);
  uint32_t high = __reduce_max_sync(kAll, s.warp[1][threadIdx.x % B::kWarps]);
  const int shift = max(0, 32 - B::kBinBits - __clz(static_cast<int>(high - low)));
  for (int64_t i = threadIdx.x; i < length; i += B::kThreads) {
    atomicAdd(&s.bins[(r.key[i] - low) >> shift], 1u);
  }
  __syncthreads();
  find_bin(k, s);
  const uint32_t rank = k - s.above, count = s.bins[s.bin];
  low += s.bin << shift;
  if (count == rank) return {low, -1};
  if (shift == 0) return {low, static_cast<int32_t>(rank)};
  if (count > 32) {
    return choose([&](int64_t i, auto f) { f(r.key[i]); }, length, k, s);
  }
  high = min(high, low + (1u << shift) - 1);
  for (int64_t i = threadIdx.x; i < length; i += B::kThreads) {
    const uint32_t key = r.key[i];
    if (key >= low && key <= high) r.few[atomicAdd(&r.few_count, 1u)] = key;
  }
  __syncthreads();
  return rank_few(r.few, count, rank);
}

// The lowest `count` of the set bits.
__device__ uint32_t lowest(uint32_t bits, int count) {
  uint32_t left = bits;
  for (int i = 0; i < count; ++i) left &= left - 1;
  return bits ^ left;
}

// Positions of the chosen keys, in order.
template <typename B>
__device__ void emit(Row<B>& r, int length, const Cut& c, int32_t* out) {
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int words = (length + 31) / 32, each = (words + B::kWarps - 1) / B::kWarps;
  const int first = warp * each;
  uint32_t above = 0, equal = 0, total;
  for (int i = 0; i < each; ++i) {
    const int at = (first + i) * 32 + lane;
    const uint32_t key = at < length ? r.key[at] : 0;
    const uint32_t over = __ballot_sync(kAll, at < length && key > c.cut);
    const uint32_t same = __ballot_sync(kAll, at < length && key == c.cut);
    if (lane == i) above = over, equal = same;
  }
  if (c.ties >= 0) {
    const int before = static_cast<int>(scan_with<B>(__popc(equal), r.search.warp[0], &total));
    equal = lowest(equal, min(max(c.ties - before, 0), __popc(equal)));
  }
  const uint32_t kept = above | equal;
  const uint32_t to = scan_with<B>(__popc(kept), r.search.warp[1], &total);
  for (int i = 0; i < each; ++i) {
    const uint32_t bits = __shfl_sync(kAll, kept, i);
    const uint32_t at = __shfl_sync(kAll, to, i) + __popc(bits & ((1u << lane) - 1));
    if ((bits >> lane & 1) != 0) out[at] = (first + i) * 32 + lane;
  }
}

template <typename B, int kBlocks>
__global__ void __launch_bounds__(B::kThreads, kBlocks)
    topk_row(const TopkArgs a, const TopkRun run) {
  extern __shared__ __align__(16) unsigned char shared[];
  Row<B>& r = *reinterpret_cast<Row<B>*>(shared);
  const int64_t row_index = blockIdx.x, length = a.lengths[row_index] + run.extra;
  const float* row = a.scores + row_index * a.score_stride;
  int32_t* out = a.indices + row_index * a.k;
  bool nan = false;
  if (length <= a.k) {
    nan = take_all<B>(row, length, a.k, !run.unscored, out);
  } else {
    const Seen seen = load_keys<B>(row, length, r.key);
    const Cut c = choose_key(r, seen, length, static_cast<uint32_t>(a.k), &nan);
    emit(r, static_cast<int>(length), c, out);
  }
  if (threadIdx.x == 0 && a.has_nan != nullptr) a.has_nan[row_index] = nan ? 1 : 0;
}

template <typename B, int kBlocks>
void launch(KernelContext& context, const TopkArgs& a, const TopkRun& run) {
  const auto kernel = topk_row<B, kBlocks>;
  static_assert(kMostOfRow / 32 / B::kWarps <= 32, "a lane for each word of a warp");
  allow_shared(reinterpret_cast<const void*>(kernel), sizeof(Row<B>), "topk_row");
  kernel<<<dim3(static_cast<unsigned>(a.rows)), B::kThreads, sizeof(Row<B>), stream_of(context)>>>(
      a, run);
  check_launch("topk_row");
}

}  // namespace

void topk_cuda_row(KernelContext& context, const TopkArgs& a, const TopkRun& run) {
  if (a.rows <= context.device()->info().multiprocessors) {
    // Every warp has its share of instructions that do not depend on the number of keys.
    if (a.score_stride <= kShortRow) return launch<Sizes<512>, 1>(context, a, run);
    return launch<Sizes<1024>, 1>(context, a, run);
  }
  launch<Sizes<256>, 6>(context, a, run);
}

}  // namespace tamis
