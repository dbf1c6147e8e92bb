// sample_tokens on CUDA: one block a row of logits, which stays in L2 between the passes.
//
//   edit, best -> top-k's cut (choose of topk_block.cuh) -> sum of the weights
//     -> top-p: where the sums along the order reach the wanted weight -> draw, the same way;
//        without top-k and top-p a draw along the ids
//
// Along the order sums are searched by histograms of weights over equal ranges of the keys, from
// the greatest key down; of tokens with equal keys, whose weights are equal, division gives how
// many are passed. All sums are of integers, so that no order of additions matters.
// Bound by the weights: 50 operations in double each, once for their sum and once a histogram.
#include "kernels/cuda/launch.cuh"
#include "kernels/sample/sample_impl.h"
#include "kernels/sample/sample_weight.h"
#include "kernels/topk/topk_block.cuh"

namespace tamis {
namespace {

using namespace topk_block;  // keys and the search for the k-th

using B = Sizes<1024>;
constexpr int kThreads = B::kThreads, kWarps = B::kWarps;

struct Shared {
  Search<B> search;
  unsigned long long bins[B::kBins], warp[kWarps];
  unsigned long long above;
  uint32_t bin;
  int32_t id;
};

__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7FFFFFFFu : ~key);
}

__device__ inline uint64_t warp_total(uint64_t x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kAll, x, d);
  return x;
}

// Sum over the threads before this one; *total over all.
__device__ uint64_t scan64(uint64_t x, Shared& s, uint64_t* total) {
  const int lane = threadIdx.x % 32, w = static_cast<int>(threadIdx.x) / 32;
  uint64_t inclusive = x;
  for (int d = 1; d < 32; d *= 2) {
    const uint64_t y = __shfl_up_sync(kAll, inclusive, d);
    if (lane >= d) inclusive += y;
  }
  __syncthreads();  // the last scan's reads are done
  if (lane == 31) s.warp[w] = inclusive;
  __syncthreads();
  const uint64_t of_warp = s.warp[lane];
  *total = warp_total(of_warp);
  return warp_total(lane < w ? of_warp : 0) + inclusive - x;
}

// The row, and what of it is left.
struct Left {
  const float* x;
  int vocab;
  float best, temperature;
  uint64_t least;     // weight
  uint32_t cut;       // keys below it are out, and of equal ones
  int32_t last_tied;  // those of later ids

  __device__ bool in_top_k(uint32_t key, int i) const {
    return key > cut || (key == cut && i <= last_tied);
  }
  __device__ uint64_t weight(float logit) const {
    const uint64_t w = sample_weight(logit, best, temperature);
    return w < least ? 0 : w;
  }
  __device__ uint64_t weight_at(int i) const {
    const float logit = x[i];
    return in_top_k(key_of(logit), i) ? weight(logit) : 0;
  }
};

// The id of the token with this key that has `before` such tokens of lower ids.
__device__ int32_t equal_token(const Left& row, uint32_t key, uint64_t before, Shared& s) {
  const int each = (row.vocab + kThreads - 1) / kThreads;
  const int first = static_cast<int>(threadIdx.x) * each, last = min(first + each, row.vocab);
  uint32_t mine = 0, total;
  for (int i = first; i < last; ++i) mine += key_of(row.x[i]) == key ? 1 : 0;
  uint32_t seen = scan(mine, s.search, &total);
  if (seen <= before && before < seen + mine) {
    for (int i = first; i < last; ++i) {
      if (key_of(row.x[i]) != key) continue;
      if (seen++ == before) s.id = i;
    }
  }
  __syncthreads();
  const int32_t id = s.id;
  __syncthreads();  // it is read before it is written again
  return id;
}

// Where along the order the sum of weights first exceeds `target`, which is less than all of it.
struct Place {
  uint32_t key;
  uint64_t above, weight;  // of greater keys; of each token of this key

  __device__ uint64_t passed(uint64_t target) const { return (target - above) / weight; }
};

__device__ Place find_place(const Left& row, uint64_t target, Shared& s) {
  // Below that weights are 0.
  uint32_t low = max(row.cut, key_of(row.best - 32 * row.temperature)), high = key_of(row.best);
  uint64_t above = 0;
  for (;;) {
    const int shift = max(0, 32 - B::kBinBits - __clz(high - low));
    for (int b = threadIdx.x; b < B::kBins; b += kThreads) s.bins[b] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.vocab; i += kThreads) {
      const float logit = row.x[i];
      const uint32_t key = key_of(logit);
      if (key < low || key > high || !row.in_top_k(key, i)) continue;
      const uint64_t w = row.weight(logit);
      if (w != 0) atomicAdd(&s.bins[(key - low) >> shift], static_cast<unsigned long long>(w));
    }
    __syncthreads();
    const int greater = B::kBins - 1 - 2 * static_cast<int>(threadIdx.x), lesser = greater - 1;
    const uint64_t first = s.bins[greater], second = s.bins[lesser];
    uint64_t total;
    const uint64_t before = above + scan64(first + second, s, &total);
    if (before <= target && target < before + first + second) {
      const bool in_first = target < before + first;
      s.bin = static_cast<uint32_t>(in_first ? greater : lesser);
      s.above = before + (in_first ? 0 : first);
    }
    __syncthreads();
    above = s.above;
    low += s.bin << shift;
    __syncthreads();  // they are read before they are written again
    if (shift == 0) return {low, above, row.weight(logit_of(low))};
    high = min(high, low + (1u << shift) - 1);
  }
}

// The first id at which the sum of the weights of ids up to it exceeds `target`.
__device__ int32_t draw_by_id(const Left& row, uint64_t mine, uint64_t target, Shared& s) {
  const int each = (row.vocab + kThreads - 1) / kThreads;
  const int first = static_cast<int>(threadIdx.x) * each, last = min(first + each, row.vocab);
  uint64_t total;
  uint64_t before = scan64(mine, s, &total);
  if (before <= target && target < before + mine) {
    for (int i = first; i < last; ++i) {
      before += row.weight_at(i);
      if (before <= target) continue;
      s.id = i;
      break;
    }
  }
  __syncthreads();
  return s.id;
}

// The greatest key.
__device__ uint32_t greatest(const float* x, int vocab, Shared& s) {
  uint32_t most = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) most = max(most, key_of(x[i]));
  most = __reduce_max_sync(kAll, most);
  if (threadIdx.x % 32 == 0) s.search.warp[0][threadIdx.x / 32] = most;
  __syncthreads();
  most = __reduce_max_sync(kAll, s.search.warp[0][threadIdx.x % 32]);
  __syncthreads();
  return most;
}

__device__ int32_t sample_row(const SampleRow& r, float* x, int vocab, Shared& s) {
  const uint32_t top = greatest(x, vocab, s);
  Left row{x, vocab, logit_of(top), r.temperature, least_weight(r.min_p), 0, vocab};
  if (r.temperature == 0) return equal_token(row, top, 0, s);
  const bool some = r.top_k > 0 && r.top_k < vocab;
  if (some) {
    const Cut c = choose([&](int64_t i, auto f) { f(key_of(x[i])); }, vocab,
                         static_cast<uint32_t>(r.top_k), s.search);
    row.cut = c.cut;
    __syncthreads();  // the search's bins are read
    if (c.ties > 0) row.last_tied = equal_token(row, c.cut, c.ties - 1, s);
  }
  // Neighbouring ids to a thread, as draw_by_id wants them.
  const int each = (vocab + kThreads - 1) / kThreads;
  const int first = static_cast<int>(threadIdx.x) * each, last = min(first + each, vocab);
  uint64_t mine = 0, kept;
  for (int i = first; i < last; ++i) mine += row.weight_at(i);
  scan64(mine, s, &kept);
  if (kept == 0) return equal_token(row, top, 0, s);
  if (r.top_p < 1) {
    const uint64_t target = wanted_weight(r.top_p, kept) - 1;
    const Place p = find_place(row, target, s);
    kept = p.above + (p.passed(target) + 1) * p.weight;
  }
  const uint64_t target = scaled_random(r.random, kept);
  if (!some && r.top_p == 1) return draw_by_id(row, mine, target, s);
  const Place p = find_place(row, target, s);
  return equal_token(row, p.key, p.passed(target), s);
}

__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const SampleTokensArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  Shared& s = *reinterpret_cast<Shared*>(shared);
  const SampleRow r = a.rows[blockIdx.x];
  if (!r.chooses()) return;
  float* x = a.logits + blockIdx.x * a.vocab;
  for (int64_t i = threadIdx.x; i < r.edits; i += kThreads) {
    const SampleEdit e = a.edits[r.first_edit + i];
    x[e.id] = edited_logit(x[e.id], e, r);
  }
  __syncthreads();
  const int32_t id = sample_row(r, x, static_cast<int>(a.vocab), s);
  if (threadIdx.x == 0) a.host_tokens[blockIdx.x] = id;
}

}  // namespace

void sample_tokens_cuda(KernelContext& context, const SampleTokensArgs& a) {
  if (a.count == 0) return;
  allow_shared(reinterpret_cast<const void*>(sample_kernel), sizeof(Shared), "sample_tokens");
  sample_kernel<<<static_cast<unsigned>(a.count), kThreads, sizeof(Shared), stream_of(context)>>>(
      a);
  check_launch("sample_tokens");
}

}  // namespace tamis
