// topk for few long rows: the blocks of a row share it.
//
// 1. count     each block counts its segment's keys by their first 11 bits;
// 2. collect   each adds the counts of all segments and so finds the bin of the k-th key; positions
//              above the bin are chosen, keys and positions in it are candidates; both go to the
//              row's lists, in any order, at places taken by one atomic addition a block;
// 3. finish    one block chooses the best candidates (choose of topk_block.cuh, in global memory)
//              and writes all chosen positions in order.
// Nothing is dropped: a list has room for the whole row. The result is a set under a total order,
// so the order of the lists does not matter. Bound by three launches and their barriers; the row is
// read twice, 4 bytes a score.
#include <algorithm>

#include "kernels/topk/topk_block.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace topk_block;  // this file is that header's body

constexpr int kSegmentThreads = 512, kCoarseBins = 2048, kCoarseShift = 21;
constexpr int kMostSegments = 16;
static_assert(kCoarseBins == 4 * kSegmentThreads && kCoarseBins == 1 << (32 - kCoarseShift));
constexpr int64_t kLeastSegment = 4096;
using Finish = Sizes<1024>;

// Of one row.
struct Lists {
  uint32_t chosen, candidates, bin;  // how many; `bin` of the k-th key
};

struct Split {
  TopkArgs args;
  TopkRun run;
  int segments = 0;
  uint32_t* counts = nullptr;    // [rows, segments, kCoarseBins]
  uint8_t* nan = nullptr;        // [rows, segments]
  Lists* lists = nullptr;        // [rows]
  int32_t* chosen = nullptr;     // [rows, k]
  uint32_t* keys = nullptr;      // [rows, score_stride]: candidates
  int32_t* positions = nullptr;  // [rows, score_stride]

  __device__ int64_t length(int64_t row) const { return args.lengths[row] + run.extra; }
};

// The part of a row that a block has: multiples of 4, but for the row's end.
struct Segment {
  const float* row;
  int64_t begin, end;
  bool aligned;
};

__device__ Segment segment_of(const Split& s, int64_t row, int64_t length) {
  const int64_t each = (length + s.segments * 4 - 1) / (s.segments * 4) * 4;
  Segment g;
  g.row = s.args.scores + row * s.args.score_stride;
  g.begin = min(length, each * blockIdx.x);
  g.end = min(length, g.begin + each);
  g.aligned = reinterpret_cast<uintptr_t>(g.row) % 16 == 0;
  return g;
}

// f(key, position) for every score of the segment; the threads stay together.
template <typename F>
__device__ void visit_segment(const Segment& g, const F& f) {
  constexpr int kStride = kSegmentThreads * 4;
#pragma unroll 2
  for (int64_t base = g.begin; base < g.end; base += kStride) {
    const int64_t at = base + 4 * threadIdx.x;
    const float4 v = load4(g.row, at, g.end, g.aligned);
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) f(x[j], at + j);
  }
}

__global__ void __launch_bounds__(kSegmentThreads) topk_count(const Split s) {
  __shared__ uint32_t bins[kCoarseBins];
  const int64_t row = blockIdx.y, length = s.length(row);
  if (length <= s.args.k) return;
  for (int i = threadIdx.x; i < kCoarseBins; i += kSegmentThreads) bins[i] = 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) s.lists[row] = {0, 0, 0};
  __syncthreads();
  const Segment g = segment_of(s, row, length);
  bool nan = false;
  visit_segment(g, [&](float x, int64_t at) {
    if (at >= g.end) return;
    nan |= isnan(x);
    atomicAdd(&bins[key_of(x) >> kCoarseShift], 1u);
  });
  nan = __syncthreads_or(nan) != 0;
  const int64_t block = row * s.segments + blockIdx.x;
  auto* out = reinterpret_cast<uint4*>(s.counts + block * kCoarseBins);
  out[threadIdx.x] = reinterpret_cast<const uint4*>(bins)[threadIdx.x];
  if (threadIdx.x == 0) s.nan[block] = nan ? 1 : 0;
}

// The bin of the k-th greatest of the row; leaves in *above and *in_bin how many keys of this
// block's segment lie above it and in it.
__device__ uint32_t kth_bin(const Split& s, int64_t row, uint32_t* above, uint32_t* in_bin) {
  __shared__ uint32_t warp[kSegmentThreads / 32];
  __shared__ uint32_t found, own_in_bin;
  // Thread i has the bins 4 j .. 4 j + 3 with j = 511 - i: the greatest keys first.
  const int j = kSegmentThreads - 1 - static_cast<int>(threadIdx.x);
  const auto* counts =
      reinterpret_cast<const uint4*>(s.counts + row * s.segments * kCoarseBins) + j;
  uint4 sum{}, own{};
  for (int g = 0; g < s.segments; ++g) {
    const uint4 c = counts[g * (kCoarseBins / 4)];
    sum = {sum.x + c.x, sum.y + c.y, sum.z + c.z, sum.w + c.w};
    if (g == static_cast<int>(blockIdx.x)) own = c;
  }
  const uint32_t mine = sum.x + sum.y + sum.z + sum.w;
  uint32_t inclusive = mine;
  const int lane = threadIdx.x % 32;
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t y = __shfl_up_sync(kAll, inclusive, d);
    if (lane >= d) inclusive += y;
  }
  if (lane == 31) warp[threadIdx.x / 32] = inclusive;
  __syncthreads();
  uint32_t before = inclusive - mine;
  for (int w = 0; w < static_cast<int>(threadIdx.x) / 32; ++w) before += warp[w];
  const auto k = static_cast<uint32_t>(s.args.k);
  if (before < k && k <= before + mine) {
    uint32_t left = k - before;  // 1 or more
    uint32_t bin = 4 * static_cast<uint32_t>(j) + 3;
    const uint32_t each[4] = {sum.w, sum.z, sum.y, sum.x};
    for (int i = 0; i < 3 && left > each[i]; ++i) {
      left -= each[i];
      --bin;
    }
    found = bin;
  }
  __syncthreads();
  const uint32_t bin = found;
  const uint32_t of_own[4] = {own.x, own.y, own.z, own.w};
  uint32_t higher = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t b = 4 * static_cast<uint32_t>(j) + i;
    if (b > bin) higher += of_own[i];
    if (b == bin) own_in_bin = of_own[i];  // one thread's
  }
  higher = __reduce_add_sync(kAll, higher);
  if (lane == 0) warp[threadIdx.x / 32] = higher;
  __syncthreads();
  higher = 0;
  for (const uint32_t w : warp) higher += w;
  *above = higher;
  *in_bin = own_in_bin;
  return bin;
}

__global__ void __launch_bounds__(kSegmentThreads) topk_collect(const Split s) {
  __shared__ uint32_t at[2];  // where the next chosen and the next candidate of the block go
  const int64_t row = blockIdx.y, length = s.length(row);
  if (length <= s.args.k) return;
  uint32_t above, in_bin;
  const uint32_t bin = kth_bin(s, row, &above, &in_bin);
  if (threadIdx.x == 0) {
    at[0] = above == 0 ? 0 : atomicAdd(&s.lists[row].chosen, above);
    at[1] = in_bin == 0 ? 0 : atomicAdd(&s.lists[row].candidates, in_bin);
    if (blockIdx.x == 0) s.lists[row].bin = bin;
  }
  __syncthreads();
  if (above + in_bin == 0) return;
  int32_t* chosen = s.chosen + row * s.args.k;
  uint32_t* keys = s.keys + row * s.args.score_stride;
  int32_t* positions = s.positions + row * s.args.score_stride;
  const int lane = threadIdx.x % 32;
  const Segment g = segment_of(s, row, length);
  visit_segment(g, [&](float x, int64_t position) {
    const uint32_t key = position < g.end ? key_of(x) : 0;
    const uint32_t own = key >> kCoarseShift;
    const bool inside = position < g.end;
#pragma unroll
    for (int list = 0; list < 2; ++list) {
      const bool mine = inside && (list == 0 ? own > bin : own == bin);
      const uint32_t lanes = __ballot_sync(kAll, mine);
      if (lanes == 0) continue;
      uint32_t place = 0;
      if (lane == 0) place = atomicAdd(&at[list], __popc(lanes));
      place = __shfl_sync(kAll, place, 0) + __popc(lanes & ((1u << lane) - 1));
      if (!mine) continue;
      if (list == 0) {
        chosen[place] = static_cast<int32_t>(position);
      } else {
        keys[place] = key;
        positions[place] = static_cast<int32_t>(position);
      }
    }
  });
}

__global__ void __launch_bounds__(Finish::kThreads, 1) topk_finish(const Split s) {
  using B = Finish;
  extern __shared__ __align__(16) unsigned char shared[];
  Buffer<B>& b = *reinterpret_cast<Buffer<B>*>(shared);
  const int64_t row = blockIdx.x, length = s.length(row), k = s.args.k;
  int32_t* out = s.args.indices + row * k;
  bool nan = false;
  if (length <= k) {
    const float* scores = s.args.scores + row * s.args.score_stride;
    nan = take_all<B>(scores, length, k, !s.run.unscored, out);
  } else {
    const Lists lists = s.lists[row];
    const uint32_t* keys = s.keys + row * s.args.score_stride;
    const int32_t* positions = s.positions + row * s.args.score_stride;
    const auto wanted = static_cast<uint32_t>(k) - lists.chosen;
    Cut c{0, -1};
    uint32_t least = 0;
    if (wanted < lists.candidates) {
      c = choose([&](int64_t i, auto f) { f(keys[i]); }, lists.candidates, wanted, b.search);
      if (c.ties > 0) {
        const auto tied = [&](int64_t i, auto f) {
          if (keys[i] == c.cut) f(earliness(positions[i]));
        };
        least = choose(tied, lists.candidates, static_cast<uint32_t>(c.ties), b.search).cut;
      }
    }
    for (uint32_t i = threadIdx.x; i < lists.chosen; i += B::kThreads) {
      b.position[i] = s.chosen[row * k + i];
    }
    __syncthreads();  // the search is over
    if (threadIdx.x == 0) b.search.count = lists.chosen;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < lists.candidates; i += B::kThreads) {
      const uint32_t key = keys[i];
      const bool kept = key > c.cut || (key == c.cut && earliness(positions[i]) >= least);
      if (kept) b.position[atomicAdd(&b.search.count, 1u)] = positions[i];
    }
    __syncthreads();
    emit_sorted(b, length, out);
    for (int g = threadIdx.x; g < s.segments; g += B::kThreads) {
      nan |= s.nan[row * s.segments + g] != 0;
    }
    nan = __syncthreads_or(nan) != 0;
  }
  if (threadIdx.x == 0 && s.args.has_nan != nullptr) s.args.has_nan[row] = nan ? 1 : 0;
}

}  // namespace

void topk_cuda_split(KernelContext& context, const TopkArgs& a, const TopkRun& run) {
  Split s{a, run};
  const int64_t blocks = context.device()->info().multiprocessors / a.rows;
  s.segments = static_cast<int>(
      std::clamp<int64_t>(std::min(blocks, a.score_stride / kLeastSegment), 1, kMostSegments));
  const int64_t scores = a.rows * a.score_stride, counts = a.rows * s.segments * kCoarseBins;
  auto* space = static_cast<std::byte*>(device_scratch(
      context, 2,
      counts * 4 + scores * 8 + a.rows * (a.k * 4 + s.segments + int64_t{sizeof(Lists)})));
  s.counts = reinterpret_cast<uint32_t*>(space);  // first: read 16 bytes at a time
  s.keys = s.counts + counts;
  s.positions = reinterpret_cast<int32_t*>(s.keys + scores);
  s.chosen = s.positions + scores;
  s.lists = reinterpret_cast<Lists*>(s.chosen + a.rows * a.k);
  s.nan = reinterpret_cast<uint8_t*>(s.lists + a.rows);
  const dim3 grid(static_cast<unsigned>(s.segments), static_cast<unsigned>(a.rows));
  topk_count<<<grid, kSegmentThreads, 0, stream_of(context)>>>(s);
  check_launch("topk_count");
  topk_collect<<<grid, kSegmentThreads, 0, stream_of(context)>>>(s);
  check_launch("topk_collect");
  allow_shared(reinterpret_cast<const void*>(topk_finish), sizeof(Buffer<Finish>), "topk_finish");
  topk_finish<<<static_cast<unsigned>(a.rows), Finish::kThreads, sizeof(Buffer<Finish>),
                stream_of(context)>>>(s);
  check_launch("topk_finish");
}

}  // namespace tamis
