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

namespace tamis::exact {
namespace {

constexpr int kBlock = 256, kHeads = 2, kColumns = 2;  // kColumns: of a thread, kBlock apart
constexpr int kKeysOfWarp = 8;
constexpr int64_t kMostArrivals = 4096;
constexpr int kArrivalsSlot = 7;  // of device_scratch, for nothing else
static_assert(kBlock / 32 == kHeads * (kKeys / kKeysOfWarp), "a warp for each row and 8 keys");

__device__ void start_queries(const MlaSparseArgs& a, const KvRows& kv, int64_t t, int64_t head0,
                              const Tile& tile) {
  for (int i = threadIdx.x; i < kHeads * tile.width; i += kBlock) {
    const int r = i / tile.width, d = i % tile.width;
    const int64_t h = min(head0 + r, a.heads - 1);
    float* to = tile.q + r * tile.stride + d;
    if (d < kv.kv_lora) {
      ptx::cp_async_4(to, a.q_latent + (t * a.heads + h) * kv.kv_lora + d);
    } else if (d < kv.kv_lora + kv.rope) {
      ptx::cp_async_4(to,
                      a.q_pe + t * a.q_pe_token_stride + h * a.q_pe_head_stride + d - kv.kv_lora);
    } else {
      *to = 0;
    }
  }
  ptx::cp_async_commit();
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

// Folds the parts of the block's heads, as mla_exact_combine; those of kAtOnce chunks and all heads
// are on their way together.
__device__ void fold_parts(const MlaSparseArgs& a, int width, const Parts& parts, int64_t t,
                           int64_t head0, int chunks) {
  constexpr int kAtOnce = 8;
  Softmax all[kHeads];
  float sum[kHeads][kColumns] = {};
  for (int c0 = 0; c0 < chunks; c0 += kAtOnce) {
    float2 stats[kAtOnce][kHeads];
    float part[kAtOnce][kHeads][kColumns];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int r = 0; r < kHeads; ++r) {
        const int64_t h = min(head0 + r, a.heads - 1);
        const int64_t at = (t * parts.chunks + min(c0 + i, chunks - 1)) * a.heads + h;
        stats[i][r] = __ldcg(reinterpret_cast<const float2*>(parts.stats) + at);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int d = min(static_cast<int>(threadIdx.x) + kBlock * j, width - 1);
          part[i][r][j] = __ldcg(parts.sums + at * width + d);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (c0 + i >= chunks) break;
#pragma unroll
      for (int r = 0; r < kHeads; ++r) {
        const Softmax next{stats[i][r].x, stats[i][r].y};
        Fold f{0, 1};
        if (c0 + i == 0) {
          all[r] = next;
        } else {
          f = fold(all[r], next, &all[r]);
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const float x = part[i][r][j];
          sum[r][j] = c0 + i == 0 ? x : fmaf(sum[r][j], f.left, x * f.right);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kHeads; ++r) {
    const float factor = 1.0f / all[r].sum;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = static_cast<int>(threadIdx.x) + kBlock * j;
      if (head0 + r >= a.heads || d >= width) continue;
      a.out[(t * a.heads + head0 + r) * width + d] = sum[r][j] * factor;
    }
  }
}

__global__ void __launch_bounds__(kBlock, 2)
    mla_exact_few(const MlaSparseArgs a, const KvRows kv, const Parts parts, uint32_t* arrivals) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float score[kHeads * kKeys], total[kHeads];
  const Tile tile = make_tile(shared, kv.kv_lora + kv.rope);
  const int64_t t = blockIdx.x, head0 = int64_t{blockIdx.y} * kHeads;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32, c = blockIdx.z;
  start_queries(a, kv, t, head0, tile);
  const AttentionList list = list_of(a, t, kChunk);
  const int chunks = __popc(__ballot_sync(kAll, lane < list.chunks() && list.has_chunk(lane)));
  if (c >= chunks) return ptx::cp_async_wait<0>();
  Softmax softmax;  // of row `warp`
  float sum[kHeads][kColumns] = {};
  const int end = min((c + 1) * list.chunk, list.length);
  for (int begin = c * list.chunk; begin < end; begin += kKeys) {
    __syncthreads();  // the last tile's values are read
    const int count = load_keys<kBlock, 5>(list, kv, begin, end, tile);
    if (count == 0) break;
    ptx::cp_async_wait<0>();
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
  allow_shared(reinterpret_cast<const void*>(mla_exact_few), static_cast<int>(bytes),
               "mla_exact_few");
  const dim3 grid(static_cast<unsigned>(a.tokens.num_tokens),
                  static_cast<unsigned>((a.heads + kHeads - 1) / kHeads),
                  static_cast<unsigned>(parts.chunks));
  mla_exact_few<<<grid, kBlock, static_cast<size_t>(bytes), stream_of(context)>>>(
      a, kv, parts, arrivals_of(context));
  check_launch("mla_exact_few");
  return true;
}

}  // namespace tamis::exact
