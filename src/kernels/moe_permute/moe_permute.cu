// moe_permute and moe_combine on CUDA.
//
// Permute is a stable counting sort by expert in one block, without atomics, then a copy of rows.
// Each of up to 32 warps owns a run of consecutive pairs and walks it 32 pairs at a time: lanes
// with the same expert find each other (match_any), a lane's place is the warp's count so far plus
// the lower lanes of its group. Pass 1 counts [warp, expert]; then counts become starts,
// expert-major; pass 2 walks again and writes rows. Bound by latency (pairs / 1024 steps, twice),
// the copy by memory: a warp reads a token's row once and writes it num_chosen times. Many pairs
// are sorted by many blocks, each its own run of them, in three launches: the counts of each block,
// where they start, and the sort.
//
// Combine: one thread a column of a token, or four of them. Bound by memory.
#include <algorithm>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/moe_permute/moe_combine_row.cuh"
#include "kernels/moe_permute/moe_permute_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxWarps = 32;
constexpr int kAhead = 8;  // steps whose ids are read at a time
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int64_t kCountBytes = 96 * 1024;  // the largest table [warps + 1, experts]
constexpr int64_t kBlockPairs = 4096, kManyPairs = 1 << 15;
constexpr int kBlockSlot = 0;  // of device_scratch: [blocks, experts]

struct Sort {
  const int32_t* ids;  // [pairs]
  int64_t pairs, experts;
  int32_t* row_of;   // [pairs]
  int64_t* offsets;  // [experts + 1]
};

// Calls use(pair, expert, place among the warp's earlier pairs of that expert) and counts.
template <typename Use>
__device__ void walk(const Sort& s, int32_t* count, Use use) {
  const int64_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const unsigned lane = threadIdx.x % 32;
  const int64_t run = (s.pairs + warps * 32 - 1) / (warps * 32) * 32;
  const int64_t begin = warp * run, end = min(begin + run, s.pairs);
  for (int64_t first = begin; first < end; first += 32 * kAhead) {
    int32_t ids[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = first + j * 32 + lane;
      ids[j] = i < end ? s.ids[i] : -1;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j * 32 >= end) break;
      const int32_t e = ids[j];
      const unsigned same = __match_any_sync(kAll, e);
      const unsigned lower = __popc(same & ((1u << lane) - 1));
      if (e >= 0) use(first + j * 32 + lane, count[e] + static_cast<int32_t>(lower));
      __syncwarp();
      if (e >= 0 && lower == 0) count[e] += __popc(same);
      __syncwarp();
    }
  }
}

// total [experts] = the block's pairs of each expert, by count [warps, experts].
__device__ void add_warps(const Sort& s, const int32_t* count, int32_t* total) {
  const int64_t warps = blockDim.x / 32;
  for (int64_t e = threadIdx.x; e < s.experts; e += blockDim.x) {
    int32_t sum = 0;
    for (int64_t w = 0; w < warps; ++w) sum += count[w * s.experts + e];
    total[e] = sum;
  }
}

// total [experts], of all pairs -> where each expert's start, and offsets.
__device__ void add_experts_before(const Sort& s, int32_t* total) {
  if (threadIdx.x < 32) {  // a running sum over the experts, 32 at a time
    int32_t before = 0;
    for (int64_t first = 0; first < s.experts; first += 32) {
      const int64_t e = first + threadIdx.x;
      const int32_t own = e < s.experts ? total[e] : 0;
      int32_t sum = own;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int32_t other = __shfl_up_sync(kAll, sum, static_cast<unsigned>(offset));
        if (threadIdx.x >= static_cast<unsigned>(offset)) sum += other;
      }
      if (e < s.experts) {
        total[e] = before + sum - own;
        s.offsets[e] = before + sum - own;
      }
      before += __shfl_sync(kAll, sum, 31);
    }
    if (threadIdx.x == 0) s.offsets[s.experts] = before;
  }
}

// count [warps, experts] -> where each warp's pairs of each expert start, from those of the block.
__device__ void starts(const Sort& s, int32_t* count, const int32_t* total) {
  const int64_t warps = blockDim.x / 32;
  for (int64_t e = threadIdx.x; e < s.experts; e += blockDim.x) {
    int32_t start = total[e];
    for (int64_t w = 0; w < warps; ++w) {
      const int32_t n = count[w * s.experts + e];
      count[w * s.experts + e] = start;
      start += n;
    }
  }
  __syncthreads();
}

// Counts the block's pairs in table [warps, experts]; returns the warp's row of it.
__device__ int32_t* count_pairs(const Sort& s, int32_t* table) {
  int32_t* own = table + threadIdx.x / 32 * s.experts;
  for (int64_t i = threadIdx.x; i < blockDim.x / 32 * s.experts; i += blockDim.x) table[i] = 0;
  __syncthreads();
  walk(s, own, [](int64_t, int32_t) {});
  __syncthreads();
  return own;
}

__global__ void __launch_bounds__(kMaxWarps * 32) sort_kernel(const Sort s) {
  extern __shared__ int32_t table[];
  int32_t* own = count_pairs(s, table);
  int32_t* total = table + blockDim.x / 32 * s.experts;
  add_warps(s, table, total);
  __syncthreads();
  add_experts_before(s, total);
  __syncthreads();
  starts(s, table, total);
  walk(s, own, [&](int64_t pair, int32_t row) { s.row_of[pair] = row; });
}

// The run of pairs of this block.
__device__ Sort block_of(const Sort& s) {
  const int64_t first = blockIdx.x * kBlockPairs;
  return {s.ids + first, min(kBlockPairs, s.pairs - first), s.experts, s.row_of + first, s.offsets};
}

// blocks [blocks, experts] = the pairs of each block.
__global__ void __launch_bounds__(kMaxWarps * 32)
    count_pairs_kernel(const Sort s, int32_t* blocks) {
  extern __shared__ int32_t table[];
  const Sort run = block_of(s);
  count_pairs(run, table);
  add_warps(run, table, blocks + blockIdx.x * s.experts);
}

// blocks -> how many pairs of the expert earlier blocks have; offsets. A warp an expert.
__global__ void __launch_bounds__(kMaxWarps * 32)
    block_starts_kernel(const Sort s, int32_t* blocks, int count) {
  extern __shared__ int32_t table[];
  const auto lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t e = threadIdx.x / 32; e < s.experts; e += kMaxWarps) {
    int32_t before = 0;
    for (int first = 0; first < count; first += 32) {
      const bool there = first + lane < count;
      int32_t* at = blocks + (first + lane) * s.experts + e;
      const int32_t own = there ? *at : 0;
      int32_t sum = own;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int32_t other = __shfl_up_sync(kAll, sum, static_cast<unsigned>(offset));
        if (lane >= offset) sum += other;
      }
      if (there) *at = before + sum - own;
      before += __shfl_sync(kAll, sum, 31);
    }
    if (lane == 0) table[e] = before;
  }
  __syncthreads();
  add_experts_before(s, table);
}

__global__ void __launch_bounds__(kMaxWarps * 32)
    sort_blocks_kernel(const Sort s, const int32_t* blocks) {
  extern __shared__ int32_t table[];
  const Sort run = block_of(s);
  int32_t* own = count_pairs(run, table);
  int32_t* total = table + blockDim.x / 32 * s.experts;
  for (int64_t e = threadIdx.x; e < s.experts; e += blockDim.x) {
    total[e] = static_cast<int32_t>(s.offsets[e]) + blocks[blockIdx.x * s.experts + e];
  }
  __syncthreads();
  starts(run, table, total);
  walk(run, own, [&](int64_t pair, int32_t row) { run.row_of[pair] = row; });
}

void sort_pairs(KernelContext& context, const Sort& sort) {
  const int64_t column = sort.experts * static_cast<int64_t>(sizeof(int32_t));
  const bool many = sort.pairs >= kManyPairs;
  int64_t warps = many ? kMaxWarps : std::clamp<int64_t>((sort.pairs + 31) / 32, 1, kMaxWarps);
  if (column > 0) warps = std::clamp<int64_t>(kCountBytes / column - 1, 1, warps);
  const auto bytes = static_cast<int>((warps + 1) * column);
  const auto threads = static_cast<unsigned>(warps * 32);
  const auto shared = static_cast<size_t>(bytes);
  const auto allow = [&](auto kernel) {
    if (bytes > 48 * 1024) {
      allow_shared(reinterpret_cast<const void*>(kernel), bytes, "moe_permute");
    }
  };
  if (!many) {
    allow(sort_kernel);
    sort_kernel<<<1, threads, shared, stream_of(context)>>>(sort);
    return check_launch("moe_permute (sort)");
  }
  const auto count = static_cast<unsigned>((sort.pairs + kBlockPairs - 1) / kBlockPairs);
  auto* blocks = static_cast<int32_t*>(device_scratch(context, kBlockSlot, count * column));
  allow(count_pairs_kernel);
  allow(sort_blocks_kernel);
  count_pairs_kernel<<<count, threads, shared, stream_of(context)>>>(sort, blocks);
  check_launch("moe_permute (counts)");
  block_starts_kernel<<<1, kMaxWarps * 32, static_cast<size_t>(column), stream_of(context)>>>(
      sort, blocks, static_cast<int>(count));
  check_launch("moe_permute (starts)");
  sort_blocks_kernel<<<count, threads, shared, stream_of(context)>>>(sort, blocks);
  check_launch("moe_permute (sort)");
}

// kWide: eight columns of a lane at a time, in whole 16 bytes.
template <bool kWide>
__global__ void __launch_bounds__(kThreads) copy_kernel(const MoePermuteArgs a) {
  constexpr int kEach = kWide ? 8 : 1;
  const int64_t t = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (t >= a.tokens) return;
  const float* from = a.x + t * a.width;
  const int32_t* row_of = a.row_of + t * a.num_chosen;
  for (int64_t c = threadIdx.x % 32 * kEach; c < a.width; c += 32 * kEach) {
    if constexpr (kWide) {
      const float4 low = *reinterpret_cast<const float4*>(from + c);
      const float4 high = *reinterpret_cast<const float4*>(from + c + 4);
      const uint4 bits = make_uint4(ptx::pack_bf16(low.x, low.y), ptx::pack_bf16(low.z, low.w),
                                    ptx::pack_bf16(high.x, high.y), ptx::pack_bf16(high.z, high.w));
      for (int64_t i = 0; i < a.num_chosen; ++i) {
        const int64_t at = row_of[i] * a.width + c;
        if (a.rows_bf16 != nullptr) {
          *reinterpret_cast<uint4*>(a.rows_bf16 + at) = bits;
        } else {
          *reinterpret_cast<float4*>(a.rows + at) = low;
          *reinterpret_cast<float4*>(a.rows + at + 4) = high;
        }
      }
    } else {
      const float x = from[c];
      for (int64_t i = 0; i < a.num_chosen; ++i) {
        const int64_t at = row_of[i] * a.width + c;
        if (a.rows_bf16 != nullptr) {
          a.rows_bf16[at] = float_to_bf16_bits(x);
        } else {
          a.rows[at] = x;
        }
      }
    }
  }
}

void copy_rows(KernelContext& context, const MoePermuteArgs& a) {
  const auto all = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.rows) |
                   reinterpret_cast<uintptr_t>(a.rows_bf16);
  const auto kernel = a.width % 8 == 0 && all % 16 == 0 ? copy_kernel<true> : copy_kernel<false>;
  constexpr int64_t kTokens = kThreads / 32;
  kernel<<<static_cast<unsigned>((a.tokens + kTokens - 1) / kTokens), kThreads, 0,
           stream_of(context)>>>(a);
  check_launch("moe_permute (rows)");
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads) combine_kernel(const MoeCombineArgs a) {
  const int64_t c = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * (kWide ? 4 : 1);
  if (c < a.width) combine_columns<kWide>(a, blockIdx.x, c);
}

}  // namespace

bool moe_permute_cuda_supports(const MoePermuteArgs& a) {
  return 2 * a.experts * static_cast<int64_t>(sizeof(int32_t)) <= kCountBytes;
}

void moe_permute_cuda(KernelContext& context, const MoePermuteArgs& a) {
  const int64_t pairs = a.tokens * a.num_chosen;
  sort_pairs(context, {a.ids, pairs, a.experts, a.row_of, a.offsets});
  if (pairs > 0 && (a.rows != nullptr || a.rows_bf16 != nullptr)) copy_rows(context, a);
}

void moe_combine_cuda(KernelContext& context, const MoeCombineArgs& a) {
  if (a.tokens == 0 || a.width == 0) return;
  const bool wide = combines_by_fours(a);
  const int64_t columns = kThreads * (wide ? 4 : 1);
  const dim3 grid(static_cast<unsigned>(a.tokens),
                  static_cast<unsigned>((a.width + columns - 1) / columns));
  if (wide) {
    combine_kernel<true><<<grid, kThreads, 0, stream_of(context)>>>(a);
  } else {
    combine_kernel<false><<<grid, kThreads, 0, stream_of(context)>>>(a);
  }
  check_launch("moe_combine");
}

}  // namespace tamis
