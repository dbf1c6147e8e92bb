// What the kernels of topk share: keys, the search for the k-th of a set, a buffer of candidates in
// shared memory, and its way out in order. topk.cu says how they work together.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/topk/topk_impl.h"

namespace tamis::topk_block {

constexpr int kMaxStreamK = 2048;
constexpr uint32_t kAll = 0xFFFFFFFFu;

// Sizes for a block of kThreads threads.
template <int kThreads_>
struct Sizes {
  static constexpr int kThreads = kThreads_, kWarps = kThreads / 32;
  static constexpr int kPerThread = 8, kPiece = kThreads * kPerThread;
  static constexpr int kCapacity = kMaxStreamK + kPiece;
  static constexpr int kOwn = kCapacity / kThreads;  // pairs a thread moves when the buffer is cut
  static constexpr int kBins = 2 * kThreads;
  static constexpr int kBinBits = kThreads == 1024 ? 11 : kThreads == 512 ? 10 : 9;
  static_assert(kCapacity % kThreads == 0 && 1 << kBinBits == kBins);
};

// What the threads of a block share while they search.
template <typename B>
struct Search {
  uint32_t bins[B::kBins];
  uint32_t warp[2][B::kWarps];
  uint32_t bin, above, incoming[2], count;
};

template <typename B>
struct Buffer {
  uint32_t key[B::kCapacity];
  int32_t position[B::kCapacity];
  Search<B> search;
};

// What of a set is chosen: keys above `cut`, and of those equal to it `ties` (-1: all).
struct Cut {
  uint32_t cut;
  int32_t ties;
};

// Sum over the threads before this one; *total over all. Nobody may still read `warp`.
template <typename B>
__device__ uint32_t scan_with(uint32_t x, uint32_t (&warp)[B::kWarps], uint32_t* total) {
  const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
  uint32_t inclusive = x;
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t y = __shfl_up_sync(kAll, inclusive, d);
    if (lane >= d) inclusive += y;
  }
  if (lane == 31) warp[w] = inclusive;
  __syncthreads();
  const uint32_t of_warp = lane < B::kWarps ? warp[lane] : 0;
  *total = __reduce_add_sync(kAll, of_warp);
  const uint32_t before = __reduce_add_sync(kAll, lane < w ? of_warp : 0);
  return before + inclusive - x;
}

template <typename B>
__device__ uint32_t scan(uint32_t x, Search<B>& s, uint32_t* total) {
  __syncthreads();  // the last scan's reads are done
  return scan_with<B>(x, s.warp[0], total);
}

// The bin that holds rank `rank` counted from the top, and how many lie in bins above it. Nobody
// may still read s.warp[0].
template <typename B>
__device__ void find_bin(uint32_t rank, Search<B>& s) {
  const uint32_t first = s.bins[B::kBins - 1 - 2 * threadIdx.x];
  const uint32_t second = s.bins[B::kBins - 2 - 2 * threadIdx.x];
  uint32_t total;
  const uint32_t before = scan_with<B>(first + second, s.warp[0], &total);
  if (before < rank && rank <= before + first + second) {
    const bool in_first = rank <= before + first;
    s.bin = B::kBins - 1 - 2 * threadIdx.x - (in_first ? 0 : 1);
    s.above = before + (in_first ? 0 : first);
  }
  __syncthreads();
}

// Chooses `rank` of the `count` values, at most 32, from the greatest down: by every warp.
__device__ inline Cut rank_few(const uint32_t* value, uint32_t count, uint32_t rank) {
  const uint32_t lane = threadIdx.x % 32, mine = lane < count ? value[lane] : 0;
  uint32_t greater = 0, equal = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t other = __shfl_sync(kAll, mine, static_cast<int>(i));
    greater += other > mine ? 1 : 0;
    equal += other == mine ? 1 : 0;
  }
  const bool here = lane < count && greater < rank && rank <= greater + equal;
  const int at = __ffs(static_cast<int>(__ballot_sync(kAll, here))) - 1;
  const uint32_t ties = __shfl_sync(kAll, rank - greater, at);
  const bool all = ties == __shfl_sync(kAll, equal, at);
  return {__shfl_sync(kAll, mine, at), all ? -1 : static_cast<int32_t>(ties)};
}

// choose() among the `count` values from low to high, at most 32: every warp looks at all of them.
template <typename B, typename Visit>
__device__ Cut choose_few(const Visit& visit, int64_t n, uint32_t rank, uint32_t low, uint32_t high,
                          uint32_t count, Search<B>& s) {
  __syncthreads();  // the bins are read
  if (threadIdx.x == 0) s.bins[0] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += B::kThreads) {
    visit(i, [&](uint32_t v) {
      if (v >= low && v <= high) s.bins[1 + atomicAdd(&s.bins[0], 1u)] = v;
    });
  }
  __syncthreads();
  return rank_few(&s.bins[1], count, rank);
}

// Chooses `rank` of the `n` values visit(i, f) gives to f (it may give none for an i), from the
// greatest down. There are at least `rank` of them, 1 or more.
template <typename B, typename Visit>
__device__ Cut choose(const Visit& visit, int64_t n, uint32_t rank, Search<B>& s) {
  uint32_t low = kAll, high = 0;
  for (int64_t i = threadIdx.x; i < n; i += B::kThreads) {
    visit(i, [&](uint32_t v) {
      low = min(low, v);
      high = max(high, v);
    });
  }
  low = __reduce_min_sync(kAll, low);
  high = __reduce_max_sync(kAll, high);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    s.warp[0][threadIdx.x / 32] = low;
    s.warp[1][threadIdx.x / 32] = high;
  }
  __syncthreads();
  low = __reduce_min_sync(kAll, s.warp[0][threadIdx.x % B::kWarps]);
  high = __reduce_max_sync(kAll, s.warp[1][threadIdx.x % B::kWarps]);
  for (;;) {
    const int shift =
        max(0, 32 - B::kBinBits - __clz(high - low));  // (high - low) >> shift < B::kBins
    for (int b = threadIdx.x; b < B::kBins; b += B::kThreads) s.bins[b] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += B::kThreads) {
      visit(i, [&](uint32_t v) {
        if (v >= low && v <= high) atomicAdd(&s.bins[(v - low) >> shift], 1u);
      });
    }
    __syncthreads();
    find_bin(rank, s);
    rank -= s.above;
    const uint32_t count = s.bins[s.bin];
    low += s.bin << shift;
    if (count == rank) return {low, -1};
    if (shift == 0) return {low, static_cast<int32_t>(rank)};
    high = min(high, low + (1u << shift) - 1);
    if (count <= 32) return choose_few(visit, n, rank, low, high, count, s);
    __syncthreads();  // the bins are read; they are cleared next
  }
}

// Positions in falling order as rising integers from 1.
__device__ inline uint32_t earliness(int64_t position) {
  return 0x80000000u - static_cast<uint32_t>(position);
}

// Keeps the k best of the buffer's `count` pairs, k <= count. Returns the new bar.
template <typename B>
__device__ uint32_t cut_buffer(Buffer<B>& b, uint32_t k) {
  Search<B>& s = b.search;
  __syncthreads();  // everything is appended
  const uint32_t count = s.count;
  const Cut c = choose([&](int64_t i, auto f) { f(b.key[i]); }, count, k, s);
  uint32_t least = 0;
  if (c.ties > 0) {
    const auto tied = [&](int64_t i, auto f) {
      if (b.key[i] == c.cut) f(earliness(b.position[i]));
    };
    least = choose(tied, count, static_cast<uint32_t>(c.ties), s).cut;
  }
  uint32_t key[B::kOwn];
  int32_t position[B::kOwn];
#pragma unroll
  for (int j = 0; j < B::kOwn; ++j) {
    const uint32_t i = threadIdx.x + j * B::kThreads;
    key[j] = i < count ? b.key[i] : 0;
    position[j] = i < count ? b.position[i] : -1;
    const bool kept = key[j] > c.cut || (key[j] == c.cut && earliness(position[j]) >= least);
    if (!kept) position[j] = -1;
  }
  __syncthreads();
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < B::kOwn; ++j) {
    const uint32_t chosen = __ballot_sync(kAll, position[j] >= 0);
    if (chosen == 0) continue;
    uint32_t at = 0;
    if (threadIdx.x % 32 == 0) at = atomicAdd(&s.count, __popc(chosen));
    at = __shfl_sync(kAll, at, 0) + __popc(chosen & ((1u << threadIdx.x % 32) - 1));
    if (position[j] >= 0) {
      b.key[at] = key[j];
      b.position[at] = position[j];
    }
  }
  __syncthreads();
  return c.ties < 0 ? c.cut : c.cut + 1;
}

// Four scores at `at`, which is a multiple of 4; NaN past the end (never appended).
__device__ inline float4 load4(const float* row, int64_t at, int64_t length, bool aligned) {
  if (aligned && at + 4 <= length) return *reinterpret_cast<const float4*>(row + at);
  float4 v{NAN, NAN, NAN, NAN};
  if (at < length) v.x = row[at];
  if (at + 1 < length) v.y = row[at + 1];
  if (at + 2 < length) v.z = row[at + 2];
  if (at + 3 < length) v.w = row[at + 3];
  return v;
}

// Writes the buffer's positions in order to `out`, through a map of bits that overlays the buffer.
template <typename B>
__device__ void emit_sorted(Buffer<B>& b, int64_t length, int32_t* out) {
  constexpr int kMine = kMaxStreamK / B::kThreads;
  constexpr int kWords = B::kCapacity * 2, kWordsEach = kWords / B::kThreads;  // both arrays
  Search<B>& s = b.search;
  const uint32_t count = s.count;
  int32_t mine[kMine];
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
    const uint32_t i = threadIdx.x + j * B::kThreads;
    mine[j] = i < count ? b.position[i] : -1;
  }
  uint32_t* map = b.key;
  uint32_t written = 0;
  for (int64_t window = 0; window < length; window += int64_t{kWords} * 32) {
    const int64_t bits_left = length - window;
    const int words = static_cast<int>(min(int64_t{kWords}, (bits_left + 31) / 32));
    const int each = min(kWordsEach, (words + B::kThreads - 1) / B::kThreads);
    __syncthreads();
    for (int w = threadIdx.x; w < each * B::kThreads; w += B::kThreads) map[w] = 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const int64_t bit = mine[j] - window;
      if (mine[j] >= 0 && bit >= 0 && bit < int64_t{kWords} * 32) {
        atomicOr(&map[bit / 32], 1u << bit % 32);
      }
    }
    __syncthreads();
    uint32_t bits = 0;
    for (int j = 0; j < each; ++j) bits += __popc(map[threadIdx.x * each + j]);
    uint32_t total;
    uint32_t at = written + scan(bits, s, &total);
    for (int j = 0; j < each && bits != 0; ++j) {
      const int word = threadIdx.x * each + j;
      for (uint32_t left = map[word]; left != 0; left &= left - 1) {
        out[at++] = static_cast<int32_t>(window + word * 32 + __ffs(left) - 1);
      }
    }
    written += total;
  }
}

// All positions of a row no longer than k. Returns whether one was NaN.
template <typename B>
__device__ bool take_all(const float* row, int64_t length, int64_t k, bool scored, int32_t* out) {
  bool nan = false;
  for (int64_t i = threadIdx.x; i < k; i += B::kThreads) {
    out[i] = i < length ? static_cast<int32_t>(i) : -1;
    if (scored && i < length) nan |= isnan(row[i]);
  }
  return __syncthreads_or(nan) != 0;
}

}  // namespace tamis::topk_block
