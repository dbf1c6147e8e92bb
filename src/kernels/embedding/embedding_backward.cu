// embedding_backward on CUDA. The tokens are sorted by id, stably, by blocks of kSorted of them
// (radix, 8 bits a pass); then a block for each kChunk of them adds its rows in the order of the
// tokens, and what runs of equal ids have in several chunks is added in their order. No atomics: a
// row's bits depend on the ids alone. Bound by memory, and by latency while sorting.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/embedding/embedding_backward_impl.h"

namespace tamis {
namespace {

constexpr int kSlot = 0;  // of device_scratch
constexpr int kSortWarps = 32;
constexpr int kDigits = 256;       // of a pass
constexpr int64_t kSorted = 4096;  // tokens that a block sorts
constexpr int kChunk = 64;         // sorted tokens of a block
constexpr int kAhead = 8;          // rows, and steps of a sort, that are read at a time

// One stable pass: order [n] holds places of ids, sorted by the digits below `shift`.
struct SortPass {
  const int32_t* ids;
  const int32_t* from;  // null: 0, 1, ..
  int64_t n;
  int shift;
  int32_t* to;
};

// Calls body(token, row) for the warp's share of the block's values; own [kDigits] counts.
template <typename Body>
__device__ inline void walk(const SortPass& s, int32_t* own, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int64_t kEach = kSorted / kSortWarps;
  static_assert(kEach % 32 == 0);
  const int64_t first = blockIdx.x * kSorted + threadIdx.x / 32 * kEach;
  const int64_t last = min(first + kEach, s.n);
  for (int64_t base = first; base < last; base += 32 * kAhead) {
    int32_t token[kAhead];
    int digit[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = base + j * 32 + lane;
      token[j] = i >= last ? -1 : s.from == nullptr ? static_cast<int32_t>(i) : s.from[i];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      digit[j] = token[j] >= 0 ? (s.ids[token[j]] >> s.shift) & (kDigits - 1) : kDigits;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (base + j * 32 >= last) break;
      const bool here = token[j] >= 0;
      const unsigned peers = __match_any_sync(0xFFFFFFFFu, digit[j]);
      const int before = __popc(peers & ((1u << lane) - 1));
      int32_t start = 0;
      if (here) start = own[digit[j]];
      __syncwarp();
      if (here && before == 0) own[digit[j]] = start + __popc(peers);
      __syncwarp();
      if (here) body(token[j], start + before);
    }
  }
}

using Table = int32_t[kSortWarps][kDigits];

// table [warps, digits] = the block's values of each digit.
__device__ inline void count_digits(const SortPass& s, Table& table) {
  for (int i = static_cast<int>(threadIdx.x); i < kSortWarps * kDigits; i += kSortWarps * 32) {
    table[i / kDigits][i % kDigits] = 0;
  }
  __syncthreads();
  walk(s, table[threadIdx.x / 32], [](int32_t, int32_t) {});
  __syncthreads();
}

// blocks [blocks, digits] = those of each block.
__global__ void __launch_bounds__(kSortWarps * 32)
    count_digits_kernel(const SortPass s, int32_t* blocks) {
  __shared__ Table table;
  count_digits(s, table);
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kSortWarps * 32) {
    int32_t sum = 0;
    for (const auto& row : table) sum += row[d];
    blocks[blockIdx.x * kDigits + d] = sum;
  }
}

// blocks -> where each block's values of a digit begin. A thread a digit.
__global__ void __launch_bounds__(kDigits) start_digits_kernel(int32_t* blocks, int count) {
  __shared__ int32_t before[kDigits];
  const auto d = static_cast<int>(threadIdx.x);
  int32_t sum = 0;
#pragma unroll 8
  for (int b = 0; b < count; ++b) sum += blocks[b * kDigits + d];
  before[d] = sum;
  __syncthreads();
  for (int offset = 1; offset < kDigits; offset *= 2) {
    const int32_t other = d >= offset ? before[d - offset] : 0;
    __syncthreads();
    before[d] += other;
    __syncthreads();
  }
  int32_t start = before[d] - sum;
  for (int b = 0; b < count; ++b) {
    const int32_t own = blocks[b * kDigits + d];
    blocks[b * kDigits + d] = start;
    start += own;
  }
}

__global__ void __launch_bounds__(kSortWarps * 32)
    sort_ids_kernel(const SortPass s, const int32_t* blocks) {
  __shared__ Table table;
  count_digits(s, table);
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kSortWarps * 32) {
    int32_t start = blocks[blockIdx.x * kDigits + d];
    for (auto& row : table) {
      const int32_t own = row[d];
      row[d] = start;
      start += own;
    }
  }
  __syncthreads();
  walk(s, table[threadIdx.x / 32], [&](int32_t token, int32_t row) { s.to[row] = token; });
}

// What the sorted tokens of a chunk add: a run of equal ids inside it to its row; of one that began
// before or goes on after, the sum to part [chunks, 2, width]: the run that enters, the one that
// leaves. A run that does both enters.
struct Runs {
  EmbeddingBackwardArgs<float> a;
  const int32_t* order;
  float* part;
};

__global__ void __launch_bounds__(kRowThreads) add_chunks_kernel(const Runs r) {
  const EmbeddingBackwardArgs<float>& a = r.a;
  __shared__ int32_t token[kChunk], id[kChunk + 2];  // ids from the place before the chunk on; -1
  const int64_t begin = int64_t{blockIdx.x} * kChunk;
  const auto count = static_cast<int>(min(int64_t{kChunk}, a.tokens - begin));
  for (int i = static_cast<int>(threadIdx.x); i < count + 2; i += kRowThreads) {
    const int64_t place = begin + i - 1;
    const bool here = place >= 0 && place < a.tokens;
    const int32_t t = here ? r.order[place] : 0;
    id[i] = here ? a.ids[t] : -1;
    if (i > 0 && i <= count) token[i - 1] = t;
  }
  __syncthreads();
  float* part = r.part + int64_t{blockIdx.x} * 2 * a.width;
  for (int64_t c = threadIdx.x; c < a.width; c += kRowThreads) {
    bool enters = id[0] == id[1];
    float sum = enters ? 0 : a.dw[id[1] * a.width + c];
    for (int first = 0; first < count; first += kAhead) {
      float v[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        v[j] = first + j < count ? a.dy[token[first + j] * a.width + c] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = first + j;
        if (i >= count) break;
        sum += v[j];
        const bool last = i + 1 == count, same = id[i + 1] == id[i + 2];
        if (same && !last) continue;
        if (enters) {
          part[c] = sum;
        } else if (same) {
          part[a.width + c] = sum;
        } else {
          a.dw[id[i + 1] * a.width + c] = sum;
        }
        if (last) break;
        enters = false;
        sum = a.dw[id[i + 2] * a.width + c];
      }
    }
  }
}

// The runs that leave a chunk: its sum, which began with the row, and those of the chunks that it
// enters.
__global__ void __launch_bounds__(kRowThreads) add_parts_kernel(const Runs r) {
  const EmbeddingBackwardArgs<float>& a = r.a;
  const int64_t chunk = blockIdx.x, next = (chunk + 1) * kChunk;
  const auto id_at = [&](int64_t place) { return a.ids[r.order[place]]; };
  if (next >= a.tokens) return;
  const int32_t id = id_at(next);
  if (id_at(next - 1) != id) return;
  const int64_t begin = chunk * kChunk;  // it does not leave if it entered
  if (begin > 0 && id_at(begin - 1) == id) return;
  int64_t end = chunk + 2;
  while (end * kChunk < a.tokens && id_at(end * kChunk) == id && id_at(end * kChunk - 1) == id) {
    ++end;
  }
  for (int64_t c = threadIdx.x; c < a.width; c += kRowThreads) {
    float sum = r.part[(chunk * 2 + 1) * a.width + c];
#pragma unroll 8
    for (int64_t k = chunk + 1; k < end; ++k) sum += r.part[k * 2 * a.width + c];
    a.dw[id * a.width + c] = sum;
  }
}

}  // namespace

void embedding_backward_cuda(KernelContext& context, const EmbeddingBackwardArgs<float>& a) {
  if (a.tokens == 0 || a.width == 0) return;
  const int64_t each = (a.tokens * static_cast<int64_t>(sizeof(int32_t)) + 255) / 256 * 256;
  const int64_t chunks = (a.tokens + kChunk - 1) / kChunk;
  const int64_t parts = chunks * 2 * a.width * static_cast<int64_t>(sizeof(float));
  const auto sorts = static_cast<unsigned>((a.tokens + kSorted - 1) / kSorted);
  const auto counts = int64_t{sorts} * kDigits * static_cast<int64_t>(sizeof(int32_t));
  auto* space = static_cast<std::byte*>(device_scratch(context, kSlot, 2 * each + counts + parts));
  auto* digits = reinterpret_cast<int32_t*>(space + 2 * each);
  int32_t* order = nullptr;
  int passes = 4;  // all 32 bits of an id
  while (a.vocabulary > 0 && passes > 1 && (a.vocabulary - 1) >> (8 * (passes - 1)) == 0) --passes;
  for (int pass = 0; pass < passes; ++pass) {
    auto* to = reinterpret_cast<int32_t*>(space + pass % 2 * each);
    const SortPass s{a.ids, order, a.tokens, 8 * pass, to};
    count_digits_kernel<<<sorts, kSortWarps * 32, 0, stream_of(context)>>>(s, digits);
    check_launch("embedding_backward (digits)");
    start_digits_kernel<<<1, kDigits, 0, stream_of(context)>>>(digits, static_cast<int>(sorts));
    check_launch("embedding_backward (starts)");
    sort_ids_kernel<<<sorts, kSortWarps * 32, 0, stream_of(context)>>>(s, digits);
    check_launch("embedding_backward (sort)");
    order = to;
  }
  const Runs runs{a, order, reinterpret_cast<float*>(space + 2 * each + counts)};
  const auto blocks = static_cast<unsigned>(chunks);
  add_chunks_kernel<<<blocks, kRowThreads, 0, stream_of(context)>>>(runs);
  check_launch("embedding_backward");
  add_parts_kernel<<<blocks, kRowThreads, 0, stream_of(context)>>>(runs);
  check_launch("embedding_backward (parts)");
}

}  // namespace tamis
