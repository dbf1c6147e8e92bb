// mla_sparse in float32 for few tokens: latency is all. Same bits as mla_sparse.cu.
//
// A block of 256 threads takes two heads of a token and one chunk of its list, so that one token of
// a few heads fills many multiprocessors. Rows of 32 entries and the queries come to shared memory
// at once; warp (row, j) of 8 multiplies its query with the keys 8 j .. 8 j + 7 in the order of
// attention_exact.cuh, warp `row` makes the softmax, and each thread adds its columns, entry by
// entry in order. The block of a token and its heads that is done last folds the parts, in order:
// who that is changes nothing. Bound by latency: index, page, row, then the folding, from L2.

#include "kernels/cuda/launch.cuh"
#include "kernels/mla_sparse/mla_exact.cuh"
#include "tensor/cuda/device.h"

namespace tamis::exact {
namespace {

constexpr int kBlock = 256, kHeads = 2, kColumns = 2;  // kColumns: of a thread, kBlock apart
constexpr int kKeysOfWarp = 8;
constexpr int64_t kMostArrivals = 4096;
constexpr int kArrivalsSlot = 7;  // of device_scratch, for nothing else
static_assert(kBlock / 32 == kHeads * (kKeys / kKeysOfWarp), "a warp for each row and 8 keys");

// Whether queries and, of float32, cache rows come to shared memory by 16 bytes.
struct Aligned {
  bool queries, keys;
};

__host__ __device__ Aligned aligned(const MlaSparseArgs& a, const KvRows& kv) {
  const auto all = reinterpret_cast<uintptr_t>(a.q_latent) | reinterpret_cast<uintptr_t>(a.q_pe);
  const int64_t floats = kv.kv_lora | kv.rope | a.q_pe_token_stride | a.q_pe_head_stride;
  return {all % 16 == 0 && floats % 4 == 0,
          kv.latent_by_fours && kv.latent_format == KvFormat::kF32};
}

__device__ void start_queries(const MlaSparseArgs& a, const KvRows& kv, int64_t t, int64_t head0,
                              const Tile& tile, bool by_fours) {
  const int each = by_fours ? 4 : 1, width = kv.kv_lora + kv.rope;
  for (int r = 0; r < kHeads; ++r) {
    const int64_t h = min(head0 + r, a.heads - 1);
    const float* latent = a.q_latent + (t * a.heads + h) * kv.kv_lora;
    const float* pe = a.q_pe + t * a.q_pe_token_stride + h * a.q_pe_head_stride - kv.kv_lora;
    for (int d = static_cast<int>(threadIdx.x) * each; d < tile.width; d += kBlock * each) {
      float* to = tile.q + r * tile.stride + d;
      const float* from = (d < kv.kv_lora ? latent : pe) + d;
      if (by_fours) {
        ptx::cp_async_16(to, d < width ? from : latent, d < width);
      } else if (d < width) {
        ptx::cp_async_4(to, from);
      } else {
        *to = 0;
      }
    }
  }
  ptx::cp_async_commit();
}

// load_keys() of float32 rows, without waiting. Lane l of every warp has entry `begin` + l of the
// list in `position`, -1 past its end.
__device__ int start_keys(const AttentionList& list, const KvRows& kv, int position,
                          const Tile& tile) {
  constexpr int kWarps = kBlock / 32;
  const int lane = threadIdx.x % 32, width = kv.kv_lora + kv.rope;
  const uint32_t valid = __ballot_sync(kAll, position >= 0);
  const int count = valid == kAll ? kKeys : __ffs(static_cast<int>(~valid)) - 1;
  int64_t mine = 0;  // from the base, where the lane's row lies
  if (lane < count) mine = latent_row(kv, list.sequence, position) - kv.base;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < kKeys; r += kWarps) {
    const std::byte* row = kv.base + __shfl_sync(kAll, mine, r);
    float* to = tile.k + r * tile.stride;
    for (int d = lane * 4; d < tile.width; d += 32 * 4) {
      const bool here = r < count && d < width;
      ptx::cp_async_16(to + d, here ? row + d * 4 : kv.base, here);
    }
  }
  ptx::cp_async_commit();
  return count;
}

// score [kHeads][kKeys]
__device__ void block_scores(const Tile& tile, float* score) {
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / (kKeys / kKeysOfWarp), part = lane % 4;
  const int key = warp % (kKeys / kKeysOfWarp) * kKeysOfWarp + lane / 4;
  const float *q = tile.q + row * tile.stride, *k = tile.k + key * tile.stride;
  float sum = 0;
#pragma unroll 4
  for (int d = part * 4; d < tile.width; d += 16) {
    add_products(*reinterpret_cast<const float4*>(q + d), *reinterpret_cast<const float4*>(k + d),
                 &sum);
  }
  sum += __shfl_xor_sync(kAll, sum, 1);
  sum += __shfl_xor_sync(kAll, sum, 2);
  if (part == 0) score[row * kKeys + key] = sum;
}

__device__ void add_tile(const Tile& tile, int count, float (&sum)[kHeads][kColumns]) {
#pragma unroll
  for (int r = 0; r < kHeads; ++r) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sum[r][j] *= tile.alpha[r];
  }
#pragma unroll 4
  for (int key = 0; key < count; ++key) {
    const float2 p = *reinterpret_cast<const float2*>(tile.p + key * kRows);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = threadIdx.x + kBlock * j;
      const float value = d < tile.width ? tile.k[key * tile.stride + d] : 0;
      sum[0][j] = fmaf(p.x, value, sum[0][j]);
      sum[1][j] = fmaf(p.y, value, sum[1][j]);
    }
  }
}

// True in the block that arrives last of `count`.
__device__ bool last_of(uint32_t* arrivals, int count) {
  __shared__ bool last;
  __threadfence();  // the part can be read before it is counted
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrivals, 1u) + 1 == static_cast<uint32_t>(count);
    if (last) *arrivals = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// fold() of a row's chunks, in order: what the sums so far and the chunk's are multiplied by.
struct Factors {
  float left[kHeads][kMaxChunks], right[kHeads][kMaxChunks], last[kHeads];
};

// By the warp of the row: lane = chunk. The exponents depend on the maxima before them alone, so
// that all are taken at once; the sums follow one by one.
__device__ void fold_softmax(Softmax s, int row, int chunks, Factors* factors) {
  const int lane = threadIdx.x % 32;
  float max = s.max;  // up to this chunk
  for (int d = 1; d < 32; d *= 2) {
    const float before = __shfl_up_sync(kAll, max, d);
    if (lane >= d) max = fmaxf(before, max);
  }
  const float left = expf(__shfl_up_sync(kAll, max, 1) - max), right = expf(s.max - max);
  float sum = __shfl_sync(kAll, s.sum, 0);
  for (int c = 1; c < chunks; ++c) {
    const float next = __shfl_sync(kAll, s.sum * right, c);
    sum = fmaf(sum, __shfl_sync(kAll, left, c), next);
  }
  factors->left[row][lane] = left;
  factors->right[row][lane] = right;
  if (lane == 0) factors->last[row] = 1.0f / sum;
}

// Folds the parts of the block's heads, as mla_exact_combine; those of kAtOnce chunks and all heads
// are on their way together.
__device__ void fold_parts(const MlaSparseArgs& a, int width, const Parts& parts, int64_t t,
                           int64_t head0, int chunks) {
  __shared__ Factors factors;
  constexpr int kAtOnce = 8;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = t * parts.chunks * a.heads, last_head = a.heads - 1;
  float2 stats = make_float2(-INFINITY, 0);
  if (warp < kHeads && lane < chunks) {
    stats = __ldcg(reinterpret_cast<const float2*>(parts.stats) + first + lane * a.heads +
                   min(head0 + warp, last_head));
  }
  float sum[kHeads][kColumns] = {};
  for (int c0 = 0; c0 < chunks; c0 += kAtOnce) {
    float part[kAtOnce][kHeads][kColumns];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int r = 0; r < kHeads; ++r) {
        const int64_t at = first + min(c0 + i, chunks - 1) * a.heads + min(head0 + r, last_head);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int d = min(static_cast<int>(threadIdx.x) + kBlock * j, width - 1);
          part[i][r][j] = __ldcg(parts.sums + at * width + d);
        }
      }
    }
    if (c0 == 0) {
      if (warp < kHeads) fold_softmax({stats.x, stats.y}, warp, chunks, &factors);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (c0 + i >= chunks) break;
#pragma unroll
      for (int r = 0; r < kHeads; ++r) {
        const float left = factors.left[r][c0 + i], right = factors.right[r][c0 + i];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const float x = part[i][r][j];
          sum[r][j] = c0 + i == 0 ? x : fmaf(sum[r][j], left, x * right);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kHeads; ++r) {
    const float factor = factors.last[r];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = static_cast<int>(threadIdx.x) + kBlock * j;
      if (head0 + r >= a.heads || d >= width) continue;
      a.out[(t * a.heads + head0 + r) * width + d] = sum[r][j] * factor;
    }
  }
}

// kLora, kRope: the cache's, whose rows are of float32 then and which come by 16 bytes, as queries
// do; 0: any. Sizes known when this is compiled halve the instructions.
template <int kLora, int kRope>
__global__ void __launch_bounds__(kBlock, 2)
    mla_exact_few(const MlaSparseArgs a, const KvRows any, const Parts parts, uint32_t* arrivals) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float score[kHeads * kKeys], total[kHeads];
  KvRows kv = any;
  if constexpr (kLora > 0) {
    kv.kv_lora = kLora;
    kv.rope = kRope;
  }
  const Tile tile = make_tile(shared, kv.kv_lora + kv.rope);
  const int64_t t = blockIdx.x, head0 = int64_t{blockIdx.y} * kHeads;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32, c = blockIdx.z;
  const Aligned by_fours = kLora > 0 ? Aligned{true, true} : aligned(a, kv);
  // Of a list of at most kMaxChunks shortest chunks it is known where they begin, before its length
  // is: the first entries are on their way with what says how long it is.
  const bool early = a.indices != nullptr && a.k <= kChunk * kMaxChunks;
  int head = -1, entry = -1;
  if (early) {
    const int32_t* indices = a.indices + t * a.k;
    if (lane * kChunk < a.k) head = indices[lane * kChunk];
    if (c * kChunk + lane < a.k) entry = indices[c * kChunk + lane];
  }
  start_queries(a, kv, t, head0, tile, by_fours.queries);
  const AttentionList list = list_of(a, t, kChunk);
  const bool has = lane < list.chunks() && (early ? head >= 0 : list.has_chunk(lane));
  const int chunks = __popc(__ballot_sync(kAll, has));
  if (c >= chunks) return ptx::cp_async_wait<0>();
  Softmax softmax;  // of row `warp`
  float sum[kHeads][kColumns] = {};
  const int end = min((c + 1) * list.chunk, list.length);
  for (int begin = c * list.chunk; begin < end; begin += kKeys) {
    __syncthreads();  // the last tile's values are read
    int count;
    if (by_fours.keys) {
      if (!early) entry = list.entry(begin + lane);
      count = start_keys(list, kv, begin + lane < end ? entry : -1, tile);
    } else {
      count = load_keys<kBlock, 5>(list, kv, begin, end, tile);
    }
    ptx::cp_async_wait<0>();
    if (count == 0) break;
    __syncthreads();
    block_scores(tile, score);
    __syncthreads();
    if (warp < kHeads) {
      update(tile, warp, a.softmax_scale * score[warp * kKeys + lane], lane < count, a.round_bf16,
             &softmax);
    }
    __syncthreads();
    add_tile(tile, count, sum);
    if (count < kKeys) break;
  }
  const int64_t at = (t * parts.chunks + c) * a.heads + head0;
  if (warp < kHeads && lane == 0) {
    total[warp] = softmax.sum;
    if (head0 + warp < a.heads) parts.stats[at + warp] = softmax;
  }
  __syncthreads();
  float* out =
      chunks == 1 ? a.out + (t * a.heads + head0) * kv.kv_lora : parts.sums + at * kv.kv_lora;
#pragma unroll
  for (int r = 0; r < kHeads; ++r) {
    const float factor = chunks == 1 ? 1.0f / total[r] : 1.0f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = threadIdx.x + kBlock * j;
      if (head0 + r < a.heads && d < kv.kv_lora) out[r * kv.kv_lora + d] = sum[r][j] * factor;
    }
  }
  if (chunks == 1 || !last_of(arrivals + t * gridDim.y + blockIdx.y, chunks)) return;
  fold_parts(a, kv.kv_lora, parts, t, head0, chunks);
}

// kMostArrivals counters, zero between operations: the last block leaves its own zero.
uint32_t* arrivals_of(KernelContext& context) {
  constexpr int64_t kBytes = kMostArrivals * sizeof(uint32_t);
  const bool fresh = device_scratch(context, kArrivalsSlot, 0) == nullptr;
  void* counters = device_scratch(context, kArrivalsSlot, kBytes);
  if (fresh) context.device()->fill(counters, 0, kBytes);
  return static_cast<uint32_t*>(counters);
}

}  // namespace

bool attend_few(KernelContext& context, const MlaSparseArgs& a, const Parts& parts) {
  const int64_t pairs = a.tokens.num_tokens * ((a.heads + kHeads - 1) / kHeads);
  // More blocks than run at once would read the rows of the cache twice for nothing.
  if (pairs * parts.chunks > 2 * context.device()->info().multiprocessors ||
      pairs > kMostArrivals || a.kv.layout.kv_lora > kBlock * kColumns) {
    return false;
  }
  const KvRows kv = kv_rows(a.kv);
  const int64_t bytes = tile_bytes(kv.kv_lora + kv.rope);
  const Aligned by_fours = aligned(a, kv);
  const bool usual = kv.kv_lora == 512 && kv.rope == 64 && by_fours.queries && by_fours.keys;
  const auto kernel = usual ? mla_exact_few<512, 64> : mla_exact_few<0, 0>;
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), "mla_exact_few");
  const dim3 grid(static_cast<unsigned>(a.tokens.num_tokens),
                  static_cast<unsigned>((a.heads + kHeads - 1) / kHeads),
                  static_cast<unsigned>(parts.chunks));
  kernel<<<grid, kBlock, static_cast<size_t>(bytes), stream_of(context)>>>(a, kv, parts,
                                                                           arrivals_of(context));
  check_launch("mla_exact_few");
  return true;
}

}  // namespace tamis::exact
