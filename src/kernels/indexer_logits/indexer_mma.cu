// indexer_logits on the tensor cores: queries that are e4m3 values, keys in FP8 or bf16, 128 wide.
//
//   I[t,s] = k_scale[s] sum_j w[t,j] ReLU(q[t,j] . k[s])     q [t, heads, 128], k [s, 128]
//
// Keys are the rows of the product (A), the heads of one token its columns (B), so that a lane ends
// with all it needs of two keys in registers: ReLU, times w, added over its 16 heads, then over
// four lanes. FP8 keys become f16, which holds every e4m3 value; bf16 keys stay; products are
// exact, sums are float32. The scale of a key multiplies the finished sum.
//
// A warp works alone: it reads 32 keys (4 KB of FP8) straight into the registers of A, 16 bytes a
// lane, and multiplies them with every query of its block. The dimensions are permuted for that: in
// step j lane t holds four neighbours of the row where it lies in memory, and q is stored in shared
// memory in the same order, ready to be loaded as B. So keys pass no shared memory and no barrier.
//   block: 8 warps, up to 8 tokens of q (16 KB each), a range of keys; tokens of one sequence share
//   its keys, others take turns, without a pause in the stream of keys.
//   registers: 64 for A, 64 sums, 32 for the next keys.
// A product (16x8x16) costs 128 bytes of shared memory, 1 cycle of an SM; the tensor cores need 1.6
// on Hopper through mma.sync. Floors: prefill by mma.sync's rate (about 60 % of wgmma's), decode by
// 132 bytes a key.
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kDim = 128, kSteps = kDim / 16, kWarps = 8, kThreads = kWarps * 32;
constexpr int kWarpKeys = 32, kBlockKeys = kWarps * kWarpKeys, kMaxTokens = 8;
constexpr uint32_t kAll = 0xFFFFFFFFu;

struct Plan {
  int block_tokens, range;  // tokens of q a block keeps; keys a block goes through
};

// Where element (step, lane t, register r, half e) of a row lies in memory.
template <bool kFp8>
__device__ int dimension_of(int step, int t, int r, int e) {
  return kFp8 ? step / 4 * 64 + 16 * t + step % 4 * 4 + 2 * r + e
              : step / 2 * 32 + 8 * t + step % 2 * 4 + 2 * r + e;
}

// 32 keys as they lie in memory: [row g + 8 i][16 bytes].
template <bool kFp8>
struct Raw {
  uint4 part[4][kFp8 ? 2 : 4];
};

template <bool kFp8>
__device__ Raw<kFp8> load_keys(const KvRows& kv, const std::byte* page, int slot) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  Raw<kFp8> raw;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::byte* row = page + kv.index_offset + (slot + g + 8 * i) * kDim * (kFp8 ? 1 : 2);
#pragma unroll
    for (int p = 0; p < (kFp8 ? 2 : 4); ++p) {
      raw.part[i][p] = __ldg(reinterpret_cast<const uint4*>(row + p * 64 + t * 16));
    }
  }
  return raw;
}

// The registers of A: a[m][step] are keys 16 m .. 16 m + 15.
struct Keys {
  uint32_t a[2][kSteps][4];
};

__device__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

__device__ Keys fragments(const Raw<true>& raw) {
  Keys k;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t codes = word(raw.part[i][step / 4], step % 4);
      ptx::e4m3x4_to_f16x2(codes, &k.a[i / 2][step][i % 2], &k.a[i / 2][step][i % 2 + 2]);
    }
  }
  return k;
}

__device__ Keys fragments(const Raw<false>& raw) {
  Keys k;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      k.a[i / 2][step][i % 2] = word(raw.part[i][step / 2], step % 2 * 2);
      k.a[i / 2][step][i % 2 + 2] = word(raw.part[i][step / 2], step % 2 * 2 + 1);
    }
  }
  return k;
}

// Queries in shared memory: q [tokens][tile of 8 heads][pair of steps][lane] as the four registers
// of B for both steps; w [tokens][tile][t] as the weights of heads 2t, 2t+1.
template <int kTiles>
struct Queries {
  uint4* q;
  float2* w;
};

template <bool kFp8, int kTiles>
__device__ void load_queries(const IndexerArgs& a, int64_t t0, int tokens,
                             const Queries<kTiles>& to) {
  for (int i = threadIdx.x; i < tokens * kTiles * kSteps / 2 * 32; i += kThreads) {
    const int lane = i % 32, pair = i / 32 % (kSteps / 2), tile = i / (32 * kSteps / 2);
    const int head = tile % kTiles * 8 + lane / 4;
    uint32_t r[4] = {};
    if (head < a.heads) {
      const float* q = a.q + ((t0 + tile / kTiles) * a.heads + head) * kDim;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* x = q + dimension_of<kFp8>(pair * 2 + j / 2, lane % 4, j % 2, 0);
        r[j] = kFp8 ? ptx::pack_f16(x[0], x[1]) : ptx::pack_bf16(x[0], x[1]);
      }
    }
    to.q[i] = {r[0], r[1], r[2], r[3]};
  }
  for (int i = threadIdx.x; i < tokens * kTiles * 4; i += kThreads) {
    const int head = i / 4 % kTiles * 8 + i % 4 * 2;
    const float* w = a.w + (t0 + i / (kTiles * 4)) * a.heads;
    to.w[i] = {head < a.heads ? w[head] : 0.0f, head + 1 < a.heads ? w[head + 1] : 0.0f};
  }
}

// The score of key g + 8 t of the warp's 32, without its scale.
template <bool kFp8, int kTiles>
__device__ float score(const Keys& k, const uint4* q, const float2* w) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  float d[2][kTiles][4] = {};
#pragma unroll
  for (int pair = 0; pair < kSteps / 2; ++pair) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint4 b = q[(n * (kSteps / 2) + pair) * 32 + lane];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if constexpr (kFp8) {
          mma_f16(d[m][n], k.a[m][pair * 2], b.x, b.y);
          mma_f16(d[m][n], k.a[m][pair * 2 + 1], b.z, b.w);
        } else {
          mma_bf16(d[m][n], k.a[m][pair * 2], b.x, b.y);
          mma_bf16(d[m][n], k.a[m][pair * 2 + 1], b.z, b.w);
        }
      }
    }
  }
  float sum[4] = {};  // of keys g + 8 i
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float2 weight = w[n * 4 + t];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = fmaf(weight.x, ptx::max_nan(d[i / 2][n][i % 2 * 2], 0.0f), sum[i]);
      sum[i] = fmaf(weight.y, ptx::max_nan(d[i / 2][n][i % 2 * 2 + 1], 0.0f), sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum[i] += __shfl_xor_sync(kAll, sum[i], 1);
    sum[i] += __shfl_xor_sync(kAll, sum[i], 2);
  }
  return t == 0 ? sum[0] : t == 1 ? sum[1] : t == 2 ? sum[2] : sum[3];
}

// The block's tokens: how many positions each sees (0: wants no scores), and its sequence.
struct BlockTokens {
  int seen[kMaxTokens], sequence[kMaxTokens];
};

// A warp's way through its block's tiles of 32 keys: tokens [first, last) of one sequence against
// keys `key` .., every kBlockKeys-th; then the next tokens. The page of a tile is looked up when
// the warp comes to it, before its keys are wanted.
struct Walk {
  int first, last, key, stop;
  const int32_t* pages;
  const std::byte* page;

  __device__ bool valid(int tokens) const { return first < tokens; }

  // The first tile of tokens from `token` on.
  __device__ void open(const IndexerArgs& a, const KvRows& kv, const BlockTokens& b, int tokens,
                       int begin, int end, int token) {
    key = begin + static_cast<int>(threadIdx.x) / 32 * kWarpKeys;
    stop = 0;
    last = token;
    do {
      first = last;
      if (first >= tokens) return;
      int visible = 0;
      for (; last < tokens && b.sequence[last] == b.sequence[first]; ++last) {
        visible = max(visible, b.seen[last]);
      }
      stop = min(end, visible);
    } while (key >= stop);
    pages = a.tokens.sequences[b.sequence[first]].pages;
    find_page(kv);
  }
  __device__ void find_page(const KvRows& kv) {
    page = kv.base + pages[key / kPageTokens] * kv.page_stride;
  }
};

// Every tile of the warp against its tokens; the next tile's keys are on their way meanwhile.
template <bool kFp8, int kTiles>
__device__ void score_tiles(const IndexerArgs& a, const KvRows& kv, const IndexerScores& to,
                            int64_t t0, const BlockTokens& b, int tokens, int begin, int end,
                            const Queries<kTiles>& queries) {
  const int lane = threadIdx.x % 32, mine = lane / 4 + lane % 4 * 8;  // the key a lane stores
  const auto advance = [&](Walk& walk) {
    walk.key += kBlockKeys;
    if (walk.key < walk.stop) return walk.find_page(kv);
    walk.open(a, kv, b, tokens, begin, end, walk.last);
  };
  Walk ahead;
  ahead.open(a, kv, b, tokens, begin, end, 0);
  Walk now = ahead;
  if (!now.valid(tokens)) return;
  Raw<kFp8> next = load_keys<kFp8>(kv, now.page, now.key % kPageTokens);
  advance(ahead);
  while (now.valid(tokens)) {
    const Keys k = fragments(next);
    const int key = now.key, first = now.first, last = now.last;
    float scale = 1;
    if constexpr (kFp8) {
      const std::byte* scales = now.page + kv.index_offset + kPageTokens * kDim;
      scale = reinterpret_cast<const float*>(scales)[key % kPageTokens + mine];
    }
    now = ahead;
    if (now.valid(tokens)) {
      next = load_keys<kFp8>(kv, now.page, now.key % kPageTokens);
      advance(ahead);
    }
    for (int i = first; i < last; ++i) {
      const int seen = b.seen[i], at = key + mine;
      if (seen == 0) continue;
      float value = -INFINITY;
      if (key < seen) {
        value = score<kFp8, kTiles>(k, queries.q + i * kTiles * (kSteps / 2) * 32,
                                    queries.w + i * kTiles * 4) *
                scale;
      }
      if (at < seen || (to.fill && at < to.columns)) {
        to.out[(t0 + i) * to.stride + at] = at < seen ? value : -INFINITY;
      }
    }
  }
}

// -inf behind the tiles that hold a key which some token of a sequence sees.
__device__ void fill_rest(const IndexerScores& to, int64_t t0, const BlockTokens& b, int tokens,
                          int begin, int end) {
  for (int first = 0, last = 0; first < tokens; first = last) {
    int visible = begin;
    for (; last < tokens && b.sequence[last] == b.sequence[first]; ++last) {
      visible = max(visible, b.seen[last]);
    }
    const int from = begin + (visible - begin + kWarpKeys - 1) / kWarpKeys * kWarpKeys;
    for (int i = first; i < last; ++i) {
      for (int at = from + static_cast<int>(threadIdx.x); at < end; at += kThreads) {
        to.out[(t0 + i) * to.stride + at] = -INFINITY;
      }
    }
  }
}

template <bool kFp8, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    indexer_mma_kernel(const IndexerArgs a, const KvRows kv, const IndexerScores to,
                       const Plan plan) {
  extern __shared__ uint4 shared[];
  __shared__ BlockTokens block_tokens;
  const int64_t t0 = static_cast<int64_t>(blockIdx.x) * plan.block_tokens;
  const int tokens = static_cast<int>(min(a.tokens.num_tokens - t0, int64_t{plan.block_tokens}));
  const int begin = static_cast<int>(blockIdx.y) * plan.range, i = static_cast<int>(threadIdx.x);
  bool wanted = to.fill;
  if (i < tokens) {
    const int seen = a.tokens.position[t0 + i] + 1;
    block_tokens.seen[i] = seen > to.skip_visible ? seen : 0;
    block_tokens.sequence[i] = a.tokens.sequence[t0 + i];
    wanted |= begin < block_tokens.seen[i];
  }
  if (__syncthreads_or(wanted) == 0) return;
  const Queries<kTiles> queries{
      shared, reinterpret_cast<float2*>(shared + plan.block_tokens * kTiles * kSteps / 2 * 32)};
  load_queries<kFp8, kTiles>(a, t0, tokens, queries);
  __syncthreads();
  const int end = static_cast<int>(min(int64_t{begin} + plan.range, to.columns));
  score_tiles<kFp8, kTiles>(a, kv, to, t0, block_tokens, tokens, begin, end, queries);
  if (to.fill) fill_rest(to, t0, block_tokens, tokens, begin, end);
}

int64_t shared_bytes(int tokens, int tiles) { return int64_t{tokens} * tiles * (2048 + 32); }

template <bool kFp8, int kTiles>
void launch(KernelContext& context, const IndexerArgs& a, const IndexerScores& to) {
  const DeviceInfo& device = context.device()->info();
  const int most = device.sm == 90 || device.sm / 10 == 10 || device.sm == 80 ? kMaxTokens : 4;
  Plan plan;
  plan.block_tokens = static_cast<int>(std::min<int64_t>(most, a.tokens.num_tokens));
  const int64_t groups = (a.tokens.num_tokens + plan.block_tokens - 1) / plan.block_tokens;
  // Few tokens: a block for each multiprocessor. Many: eight, so that the last ones matter little.
  const int64_t blocks = device.multiprocessors * (groups * 4 <= device.multiprocessors ? 1 : 8);
  const int64_t ranges = std::max<int64_t>(1, blocks / groups);
  const int64_t range = (to.columns + ranges - 1) / ranges;
  plan.range = static_cast<int>((range + kBlockKeys - 1) / kBlockKeys * kBlockKeys);
  const auto bytes = static_cast<int>(shared_bytes(plan.block_tokens, kTiles));
  const auto kernel = indexer_mma_kernel<kFp8, kTiles>;
  allow_shared(reinterpret_cast<const void*>(kernel), bytes, "indexer_mma");
  const dim3 grid(static_cast<unsigned>(groups),
                  static_cast<unsigned>((to.columns + plan.range - 1) / plan.range));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(a, kv_rows(a.kv), to,
                                                                             plan);
  check_launch("indexer_mma");
}

template <bool kFp8>
void launch_heads(KernelContext& context, const IndexerArgs& a, const IndexerScores& to) {
  if (a.heads <= 8) return launch<kFp8, 1>(context, a, to);
  if (a.heads <= 16) return launch<kFp8, 2>(context, a, to);
  if (a.heads <= 32) return launch<kFp8, 4>(context, a, to);
  launch<kFp8, 8>(context, a, to);
}

}  // namespace

bool indexer_scores_mma_supports(const IndexerArgs& a) {
  const KvLayout& l = a.kv.layout;
  return a.q_is_e4m3 && l.index_dim == kDim && a.heads <= 64 && l.index_format != KvFormat::kF32 &&
         l.index_offset() % 16 == 0 && a.kv.page_stride % 16 == 0;
}

void indexer_scores_mma(KernelContext& context, const IndexerArgs& a, const IndexerScores& to) {
  a.kv.layout.index_format == KvFormat::kFP8 ? launch_heads<true>(context, a, to)
                                             : launch_heads<false>(context, a, to);
}

}  // namespace tamis
