// topk on CUDA: the k best of each row, exactly, in one read of the scores.
//
// Keys: a score becomes an unsigned integer of the same order (x + 0 first, so that -0 is 0; NaN is
// key 0, below -inf). Positions break ties, so all (key, position) pairs differ.
//
// topk_stream (k <= 2048), one block of 1024 threads a row: the row streams past in pieces of 8192;
// what reaches `bar` is appended to a buffer of 10,240 pairs in shared memory, in any order. When a
// piece would not fit, the buffer is cut to its k best and `bar` rises to the least of them: a
// later score equal to it has a later position and loses. For scores in random order that happens
// about log4(length / 8192) + 1 times; at worst (ascending scores) once a piece. Nothing is ever
// dropped. Cutting finds the k-th key by histograms of 2048 equal bins between the least and the
// greatest key, then of the chosen bin, at most three times; then, if several keys equal it, the
// last position that still belongs, the same way. The chosen positions set bits of a map in shared
// memory, which is read out in order: that sorts them.
// Bound by memory for many rows (4 bytes a score), by one SM's bandwidth and the barriers for one.
//
// topk_any (any k): the same search over the row in global memory, five to nine reads of it.
#include "kernels/cuda/launch.cuh"
#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kPerThread = 8, kPiece = kThreads * kPerThread;
constexpr int kMaxStreamK = 2048, kCapacity = kMaxStreamK + kPiece;
constexpr int kOwn = kCapacity / kThreads;  // pairs a thread moves when the buffer is cut
constexpr int kBins = 2 * kThreads;
constexpr uint32_t kAll = 0xFFFFFFFFu;
static_assert(kCapacity % kThreads == 0);

struct Search {
  uint32_t bins[kBins];
  uint32_t warp[2][kWarps];
  uint32_t bin, above, low, high, incoming[2], count;
};

struct Buffer {
  uint32_t key[kCapacity];
  int32_t position[kCapacity];
  Search search;
};

// What of a set is chosen: keys above `cut`, and of those equal to it `ties` (-1: all).
struct Cut {
  uint32_t cut;
  int32_t ties;
};

__device__ uint32_t key_of(float x) {
  if (isnan(x)) return 0;
  const uint32_t u = __float_as_uint(x + 0.0f);
  return (u >> 31) != 0 ? ~u : u | 0x80000000u;
}

// Sum over the threads before this one; *total over all. Two barriers.
__device__ uint32_t scan(uint32_t x, Search& s, uint32_t* total) {
  const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
  uint32_t inclusive = x;
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t y = __shfl_up_sync(kAll, inclusive, d);
    if (lane >= d) inclusive += y;
  }
  __syncthreads();  // the last scan's reads are done
  if (lane == 31) s.warp[0][w] = inclusive;
  __syncthreads();
  const uint32_t of_warp = s.warp[0][lane];
  *total = __reduce_add_sync(kAll, of_warp);
  const uint32_t before = __reduce_add_sync(kAll, lane < w ? of_warp : 0);
  return before + inclusive - x;
}

// The bin that holds rank `rank` counted from the top, and how many lie in bins above it.
__device__ void find_bin(uint32_t rank, Search& s) {
  const uint32_t first = s.bins[kBins - 1 - 2 * threadIdx.x];
  const uint32_t second = s.bins[kBins - 2 - 2 * threadIdx.x];
  uint32_t total;
  const uint32_t before = scan(first + second, s, &total);
  if (before < rank && rank <= before + first + second) {
    const bool in_first = rank <= before + first;
    s.bin = kBins - 1 - 2 * threadIdx.x - (in_first ? 0 : 1);
    s.above = before + (in_first ? 0 : first);
  }
  __syncthreads();
}

// Chooses `rank` of the `n` values visit(i, f) gives to f (it may give none for an i), from the
// greatest down. There are at least `rank` of them, 1 or more.
template <typename Visit>
__device__ Cut choose(const Visit& visit, int64_t n, uint32_t rank, Search& s) {
  uint32_t low = kAll, high = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
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
  low = __reduce_min_sync(kAll, s.warp[0][threadIdx.x % 32]);
  high = __reduce_max_sync(kAll, s.warp[1][threadIdx.x % 32]);
  for (;;) {
    const int shift = max(0, 21 - __clz(high - low));  // (high - low) >> shift < kBins
    for (int b = threadIdx.x; b < kBins; b += kThreads) s.bins[b] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
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
    __syncthreads();  // the bins are read; they are cleared next
  }
}

// Positions in falling order as rising integers from 1.
__device__ uint32_t earliness(int64_t position) {
  return 0x80000000u - static_cast<uint32_t>(position);
}

// Keeps the k best of the buffer's `count` pairs, k <= count. Returns the new bar.
__device__ uint32_t cut_buffer(Buffer& b, uint32_t k) {
  Search& s = b.search;
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
  uint32_t key[kOwn];
  int32_t position[kOwn];
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    const uint32_t i = threadIdx.x + j * kThreads;
    key[j] = i < count ? b.key[i] : 0;
    position[j] = i < count ? b.position[i] : -1;
    const bool kept = key[j] > c.cut || (key[j] == c.cut && earliness(position[j]) >= least);
    if (!kept) position[j] = -1;
  }
  __syncthreads();
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
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
__device__ float4 load4(const float* row, int64_t at, int64_t length, bool aligned) {
  if (aligned && at + 4 <= length) return *reinterpret_cast<const float4*>(row + at);
  float4 v{NAN, NAN, NAN, NAN};
  if (at < length) v.x = row[at];
  if (at + 1 < length) v.y = row[at + 1];
  if (at + 2 < length) v.z = row[at + 2];
  if (at + 3 < length) v.w = row[at + 3];
  return v;
}

struct Piece {
  float x[kPerThread];
};

__device__ Piece load_piece(const float* row, int64_t base, int64_t length, bool aligned) {
  Piece p;
#pragma unroll
  for (int j = 0; j < kPerThread; j += 4) {
    const float4 v = load4(row, base + j * kThreads + 4 * threadIdx.x, length, aligned);
    p.x[j] = v.x;
    p.x[j + 1] = v.y;
    p.x[j + 2] = v.z;
    p.x[j + 3] = v.w;
  }
  return p;
}

__device__ int64_t position_in_piece(int j) {
  return j / 4 * 4 * kThreads + 4 * threadIdx.x + j % 4;
}

// Appends what of the piece reaches `bar`; first cuts the buffer if it would not fit.
__device__ void append(Buffer& b, const uint32_t (&key)[kPerThread], int64_t base, int64_t length,
                       uint32_t k, int turn, uint32_t* bar) {
  Search& s = b.search;
  const auto admitted = [&](int j) {
    return key[j] >= *bar && base + position_in_piece(j) < length;
  };
  uint32_t mine = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) mine += admitted(j);
  uint32_t of_warp = __reduce_add_sync(kAll, mine);
  if (threadIdx.x % 32 == 0 && of_warp != 0) atomicAdd(&s.incoming[turn], of_warp);
  __syncthreads();  // the last piece is appended, this one counted
  if (s.count + s.incoming[turn] > kCapacity) {
    *bar = cut_buffer(b, k);
    mine = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) mine += admitted(j);
    of_warp = __reduce_add_sync(kAll, mine);
  }
  if (threadIdx.x == 0) s.incoming[turn ^ 1] = 0;
  __syncthreads();  // s.count is read by all, and may change
  if (of_warp == 0) return;
  const int lane = threadIdx.x % 32;
  uint32_t inclusive = mine;
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t y = __shfl_up_sync(kAll, inclusive, d);
    if (lane >= d) inclusive += y;
  }
  uint32_t at = 0;
  if (lane == 0) at = atomicAdd(&s.count, of_warp);
  at = __shfl_sync(kAll, at, 0) + inclusive - mine;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    if (admitted(j)) {
      b.key[at] = key[j];
      b.position[at] = static_cast<int32_t>(base + position_in_piece(j));
      ++at;
    }
  }
}

// Writes the buffer's positions in order to `out`, through a map of bits that overlays the buffer.
__device__ void emit_sorted(Buffer& b, int64_t length, int32_t* out) {
  constexpr int kMine = kMaxStreamK / kThreads;
  constexpr int kWords = kCapacity * 2, kWordsEach = kWords / kThreads;  // both arrays
  Search& s = b.search;
  const uint32_t count = s.count;
  int32_t mine[kMine];
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
    const uint32_t i = threadIdx.x + j * kThreads;
    mine[j] = i < count ? b.position[i] : -1;
  }
  uint32_t* map = b.key;
  uint32_t written = 0;
  for (int64_t window = 0; window < length; window += int64_t{kWords} * 32) {
    __syncthreads();
    for (int w = threadIdx.x; w < kWords; w += kThreads) map[w] = 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const int64_t bit = mine[j] - window;
      if (mine[j] >= 0 && bit >= 0 && bit < int64_t{kWords} * 32) {
        atomicOr(&map[bit / 32], 1u << bit % 32);
      }
    }
    __syncthreads();
    const int64_t bits_left = length - window;
    const int words = static_cast<int>(min(int64_t{kWords}, (bits_left + 31) / 32));
    const int each = min(kWordsEach, (words + kThreads - 1) / kThreads);
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
__device__ bool take_all(const float* row, int64_t length, int64_t k, bool scored, int32_t* out) {
  bool nan = false;
  for (int64_t i = threadIdx.x; i < k; i += kThreads) {
    out[i] = i < length ? static_cast<int32_t>(i) : -1;
    if (scored && i < length) nan |= isnan(row[i]);
  }
  return __syncthreads_or(nan) != 0;
}

// A row's length is lengths[row] + run.extra. With `unscored`, rows no longer than k hold no scores
// and are not read.
__global__ void __launch_bounds__(kThreads, 1) topk_stream(const TopkArgs a, const TopkRun run) {
  extern __shared__ __align__(16) unsigned char shared[];
  Buffer& b = *reinterpret_cast<Buffer*>(shared);
  const int64_t row_index = blockIdx.x, length = a.lengths[row_index] + run.extra;
  const float* row = a.scores + row_index * a.score_stride;
  int32_t* out = a.indices + row_index * a.k;
  bool nan = false;
  if (length <= a.k) {
    nan = take_all(row, length, a.k, !run.unscored, out);
  } else {
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    if (threadIdx.x == 0) b.search.count = b.search.incoming[0] = b.search.incoming[1] = 0;
    uint32_t bar = 0;
    Piece next = load_piece(row, 0, length, aligned);
    __syncthreads();
    int turn = 0;
    for (int64_t base = 0; base < length; base += kPiece, turn ^= 1) {
      const Piece now = next;
      if (base + kPiece < length) next = load_piece(row, base + kPiece, length, aligned);
      uint32_t key[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        key[j] = key_of(now.x[j]);
        nan |= key[j] == 0 && base + position_in_piece(j) < length;
      }
      append(b, key, base, length, static_cast<uint32_t>(a.k), turn, &bar);
    }
    __syncthreads();
    if (b.search.count > a.k) cut_buffer(b, static_cast<uint32_t>(a.k));
    emit_sorted(b, length, out);
    nan = __syncthreads_or(nan) != 0;
  }
  if (threadIdx.x == 0 && a.has_nan != nullptr) a.has_nan[row_index] = nan ? 1 : 0;
}

__global__ void __launch_bounds__(kThreads, 1) topk_any(const TopkArgs a, const TopkRun run) {
  __shared__ Search s;
  const int64_t row_index = blockIdx.x, length = a.lengths[row_index] + run.extra;
  const float* row = a.scores + row_index * a.score_stride;
  int32_t* out = a.indices + row_index * a.k;
  bool nan = false;
  if (length <= a.k) {
    nan = take_all(row, length, a.k, !run.unscored, out);
  } else if (a.k > 0) {
    const Cut c = choose([&](int64_t i, auto f) { f(key_of(row[i])); }, length,
                         static_cast<uint32_t>(a.k), s);
    uint32_t written = 0, tied = 0;
    for (int64_t base = 0; base < length; base += kThreads) {
      const int64_t i = base + threadIdx.x;
      const uint32_t key = i < length ? key_of(row[i]) : 0;
      nan |= i < length && key == 0;
      const bool equal = i < length && key == c.cut;
      uint32_t equal_total, total;
      const uint32_t rank = tied + scan(equal ? 1 : 0, s, &equal_total);
      tied += equal_total;
      const bool kept =
          i < length &&
          (key > c.cut || (equal && (c.ties < 0 || rank < static_cast<uint32_t>(c.ties))));
      const uint32_t at = written + scan(kept ? 1 : 0, s, &total);
      written += total;
      if (kept) out[at] = static_cast<int32_t>(i);
    }
    nan = __syncthreads_or(nan) != 0;
  } else {
    for (int64_t i = threadIdx.x; i < length; i += kThreads) nan |= isnan(row[i]);
    nan = __syncthreads_or(nan) != 0;
  }
  if (threadIdx.x == 0 && a.has_nan != nullptr) a.has_nan[row_index] = nan ? 1 : 0;
}

}  // namespace

void topk_cuda_run(KernelContext& context, const TopkArgs& a, const TopkRun& run) {
  if (a.rows == 0) return;
  const auto rows = static_cast<unsigned>(a.rows);
  if (a.k >= 1 && a.k <= kMaxStreamK) {
    allow_shared(reinterpret_cast<const void*>(topk_stream), sizeof(Buffer), "topk_stream");
    topk_stream<<<rows, kThreads, sizeof(Buffer), stream_of(context)>>>(a, run);
    check_launch("topk_stream");
  } else {
    topk_any<<<rows, kThreads, 0, stream_of(context)>>>(a, run);
    check_launch("topk_any");
  }
}

void topk_cuda(KernelContext& context, const TopkArgs& a) { topk_cuda_run(context, a, {}); }

}  // namespace tamis
