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
#include "kernels/topk/topk_block.cuh"
#include "kernels/topk/topk_row.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace topk_block;  // this file is that header's body

template <typename B>
struct Piece {
  float x[B::kPerThread];
};

template <typename B>
__device__ Piece<B> load_piece(const float* row, int64_t base, int64_t length, bool aligned) {
  Piece<B> p;
#pragma unroll
  for (int j = 0; j < B::kPerThread; j += 4) {
    const float4 v = load4(row, base + j * B::kThreads + 4 * threadIdx.x, length, aligned);
    p.x[j] = v.x;
    p.x[j + 1] = v.y;
    p.x[j + 2] = v.z;
    p.x[j + 3] = v.w;
  }
  return p;
}

template <typename B>
__device__ int64_t position_in_piece(int j) {
  return j / 4 * 4 * B::kThreads + 4 * threadIdx.x + j % 4;
}

// Appends what of the piece reaches `bar`; first cuts the buffer if it would not fit.
template <typename B>
__device__ void append(Buffer<B>& b, const uint32_t (&key)[B::kPerThread], int64_t base,
                       int64_t length, uint32_t k, int turn, uint32_t* bar) {
  Search<B>& s = b.search;
  const auto admitted = [&](int j) {
    return key[j] >= *bar && base + position_in_piece<B>(j) < length;
  };
  uint32_t mine = 0;
#pragma unroll
  for (int j = 0; j < B::kPerThread; ++j) mine += admitted(j);
  uint32_t of_warp = __reduce_add_sync(kAll, mine);
  if (threadIdx.x % 32 == 0 && of_warp != 0) atomicAdd(&s.incoming[turn], of_warp);
  __syncthreads();  // the last piece is appended, this one counted
  if (s.count + s.incoming[turn] > B::kCapacity) {
    *bar = cut_buffer(b, k);
    mine = 0;
#pragma unroll
    for (int j = 0; j < B::kPerThread; ++j) mine += admitted(j);
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
  for (int j = 0; j < B::kPerThread; ++j) {
    if (admitted(j)) {
      b.key[at] = key[j];
      b.position[at] = static_cast<int32_t>(base + position_in_piece<B>(j));
      ++at;
    }
  }
}

template <typename B, int kBlocks>
__global__ void __launch_bounds__(B::kThreads, kBlocks)
    topk_stream(const TopkArgs a, const TopkRun run) {
  extern __shared__ __align__(16) unsigned char shared[];
  Buffer<B>& b = *reinterpret_cast<Buffer<B>*>(shared);
  const int64_t row_index = blockIdx.x, length = a.lengths[row_index] + run.extra;
  const float* row = a.scores + row_index * a.score_stride;
  int32_t* out = a.indices + row_index * a.k;
  bool nan = false;
  if (length <= a.k) {
    nan = take_all<B>(row, length, a.k, !run.unscored, out);
  } else {
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    if (threadIdx.x == 0) b.search.count = b.search.incoming[0] = b.search.incoming[1] = 0;
    uint32_t bar = 0;
    Piece<B> next = load_piece<B>(row, 0, length, aligned);
    __syncthreads();
    int turn = 0;
    for (int64_t base = 0; base < length; base += B::kPiece, turn ^= 1) {
      const Piece<B> now = next;
      if (base + B::kPiece < length) next = load_piece<B>(row, base + B::kPiece, length, aligned);
      uint32_t key[B::kPerThread];
#pragma unroll
      for (int j = 0; j < B::kPerThread; ++j) {
        key[j] = key_of(now.x[j]);
        nan |= key[j] == 0 && base + position_in_piece<B>(j) < length;
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

template <typename B>
__global__ void __launch_bounds__(B::kThreads, 1) topk_any(const TopkArgs a, const TopkRun run) {
  __shared__ Search<B> s;
  const int64_t row_index = blockIdx.x, length = a.lengths[row_index] + run.extra;
  const float* row = a.scores + row_index * a.score_stride;
  int32_t* out = a.indices + row_index * a.k;
  bool nan = false;
  if (length <= a.k) {
    nan = take_all<B>(row, length, a.k, !run.unscored, out);
  } else if (a.k > 0) {
    const Cut c = choose([&](int64_t i, auto f) { f(key_of(row[i])); }, length,
                         static_cast<uint32_t>(a.k), s);
    uint32_t written = 0, tied = 0;
    for (int64_t base = 0; base < length; base += B::kThreads) {
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
    for (int64_t i = threadIdx.x; i < length; i += B::kThreads) nan |= isnan(row[i]);
    nan = __syncthreads_or(nan) != 0;
  }
  if (threadIdx.x == 0 && a.has_nan != nullptr) a.has_nan[row_index] = nan ? 1 : 0;
}

template <typename B, int kBlocks>
void launch_stream(KernelContext& context, const TopkArgs& a, const TopkRun& run) {
  const auto kernel = topk_stream<B, kBlocks>;
  allow_shared(reinterpret_cast<const void*>(kernel), sizeof(Buffer<B>), "topk_stream");
  kernel<<<dim3(static_cast<unsigned>(a.rows)), B::kThreads, sizeof(Buffer<B>),
           stream_of(context)>>>(a, run);
  check_launch("topk_stream");
}

constexpr int64_t kSplitLength = 16384;  // shorter rows are done before a second block would help

}  // namespace

void topk_cuda_run(KernelContext& context, const TopkArgs& a, const TopkRun& run) {
  if (a.rows == 0) return;
  if (a.k >= 1 && a.score_stride <= kMostOfRow) return topk_cuda_row(context, a, run);
  if (a.k < 1 || a.k > kMaxStreamK) {
    using B = Sizes<1024>;
    topk_any<B><<<static_cast<unsigned>(a.rows), B::kThreads, 0, stream_of(context)>>>(a, run);
    return check_launch("topk_any");
  }
  const int64_t multiprocessors = context.device()->info().multiprocessors;
  if (a.score_stride >= kSplitLength && a.rows * 4 <= multiprocessors) {
    return topk_cuda_split(context, a, run);
  }
  if (a.rows <= multiprocessors) return launch_stream<Sizes<1024>, 1>(context, a, run);
  launch_stream<Sizes<256>, 5>(context, a, run);
}

void topk_cuda(KernelContext& context, const TopkArgs& a) { topk_cuda_run(context, a, {}); }

}  // namespace tamis
