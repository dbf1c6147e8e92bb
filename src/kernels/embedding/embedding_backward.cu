// embedding_backward on CUDA. The tokens are sorted by id, stably, by one block (radix, 8 bits a
// pass); then a block for each run of equal ids adds its rows in the order of the tokens, so the
// bits are the reference's. No atomics. Bound by the longest run, and by memory.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/embedding/embedding_backward_impl.h"

namespace tamis {
namespace {

constexpr int kSlot = 0;  // of device_scratch
constexpr int kSortWarps = 32;
constexpr int kDigits = 256;  // of a pass
constexpr int kAhead = 8;     // rows of a run that are read at a time

// One stable pass: order [n] holds places of ids, sorted by the digits below `shift`.
struct SortPass {
  const int32_t* ids;
  const int32_t* from;  // null: 0, 1, ..
  int64_t n;
  int shift;
  int32_t* to;
};

// Calls with_row(token, row) for the warp's share of the values; own [kDigits] counts.
template <typename Body>
__device__ inline void walk(const SortPass& s, int32_t* own, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t each = (s.n + kSortWarps * 32 - 1) / (kSortWarps * 32) * 32;
  const int64_t first = threadIdx.x / 32 * each, last = min(first + each, s.n);
  for (int64_t base = first; base < last; base += 32) {
    const int64_t i = base + lane;
    const bool here = i < last;
    const int32_t token = !here ? 0 : s.from == nullptr ? static_cast<int32_t>(i) : s.from[i];
    const int digit = here ? (s.ids[token] >> s.shift) & (kDigits - 1) : kDigits;
    const unsigned peers = __match_any_sync(0xFFFFFFFFu, digit);
    const int before = __popc(peers & ((1u << lane) - 1));
    int32_t start = 0;
    if (here) start = own[digit];
    __syncwarp();
    if (here && before == 0) own[digit] = start + __popc(peers);
    __syncwarp();
    if (here) body(token, start + before);
  }
}

__global__ void __launch_bounds__(kSortWarps * 32) sort_ids_kernel(const SortPass s) {
  __shared__ int32_t table[kSortWarps][kDigits];
  __shared__ int32_t total[kDigits];
  for (int i = static_cast<int>(threadIdx.x); i < kSortWarps * kDigits; i += kSortWarps * 32) {
    table[i / kDigits][i % kDigits] = 0;
  }
  __syncthreads();
  walk(s, table[threadIdx.x / 32], [](int32_t, int32_t) {});
  __syncthreads();
  // Where each warp's values of a digit begin among those of the digit.
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kSortWarps * 32) {
    int32_t sum = 0;
    for (auto& row : table) {
      const int32_t own = row[d];
      row[d] = sum;
      sum += own;
    }
    total[d] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t sum = 0;
    for (int32_t& t : total) {
      const int32_t own = t;
      t = sum;
      sum += own;
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSortWarps * kDigits; i += kSortWarps * 32) {
    table[i / kDigits][i % kDigits] += total[i % kDigits];
  }
  __syncthreads();
  walk(s, table[threadIdx.x / 32], [&](int32_t token, int32_t row) { s.to[row] = token; });
}

// Block i adds the run that begins at place i, if one does.
__global__ void __launch_bounds__(kRowThreads)
    add_runs_kernel(const EmbeddingBackwardArgs<float> a, const int32_t* order) {
  const int64_t begin = blockIdx.x;
  const int32_t id = a.ids[order[begin]];
  if (begin > 0 && a.ids[order[begin - 1]] == id) return;
  int64_t end = begin + 1;
  while (end < a.tokens && a.ids[order[end]] == id) ++end;
  for (int64_t c = threadIdx.x; c < a.width; c += kRowThreads) {
    float& to = a.dw[id * a.width + c];
    float sum = to;
    int64_t i = begin;
    for (; i + kAhead <= end; i += kAhead) {
      float v[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) v[j] = a.dy[order[i + j] * a.width + c];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) sum += v[j];
    }
    for (; i < end; ++i) sum += a.dy[order[i] * a.width + c];
    to = sum;
  }
}

}  // namespace

void embedding_backward_cuda(KernelContext& context, const EmbeddingBackwardArgs<float>& a) {
  if (a.tokens == 0 || a.width == 0) return;
  const int64_t each = (a.tokens * static_cast<int64_t>(sizeof(int32_t)) + 255) / 256 * 256;
  auto* space = static_cast<std::byte*>(device_scratch(context, kSlot, 2 * each));
  int32_t* order = nullptr;
  for (int pass = 0; pass < 4; ++pass) {  // all 32 bits of an id
    auto* to = reinterpret_cast<int32_t*>(space + pass % 2 * each);
    const SortPass s{a.ids, order, a.tokens, 8 * pass, to};
    sort_ids_kernel<<<1, kSortWarps * 32, 0, stream_of(context)>>>(s);
    check_launch("embedding_backward (sort)");
    order = to;
  }
  add_runs_kernel<<<static_cast<unsigned>(a.tokens), kRowThreads, 0, stream_of(context)>>>(a,
                                                                                           order);
  check_launch("embedding_backward");
}

}  // namespace tamis
