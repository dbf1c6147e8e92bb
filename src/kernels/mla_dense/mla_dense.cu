// mla_dense on CUDA in float32, any widths up to 512.
//
//   score = scale (q_nope . k_nope + q_pe . k_pe),  out = softmax(score) v     causal, per head
//
// A block takes 8 queries of one head and goes through the positions in tiles of 32 from 0; scores
// and softmax as in attention_exact.cuh. For each query a word says which of the tile's keys it
// attends to: those up to its position, or those of them in its indices. A tile that no query
// attends to is not read, and a value is added only to queries that attend to it, so a row's bits
// depend on its own token alone. Bound by FP32 arithmetic.
#include "kernels/cuda/attention_exact.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/mla_dense/mla_dense_impl.h"

namespace tamis {
namespace {

using namespace exact;  // this file is that header's body

constexpr int kMaxColumns = 4;
constexpr int64_t kSharedLimit = 99 * 1024;

struct Query {
  int64_t token;
  int visible = 0;         // 0: no such token
  const int32_t* indices;  // ascending; null: all
  int64_t cursor = 0;      // entries before it lie in earlier tiles
};

__device__ Query query_of(const MlaDenseArgs& a, int64_t token) {
  Query q;
  q.token = min(token, a.tokens - 1);
  q.visible = token < a.tokens ? a.position[token] + 1 : 0;
  q.indices = a.indices == nullptr ? nullptr : a.indices + q.token * a.k;
  return q;
}

// Which of the keys begin .. begin + 31 the query attends to. By a whole warp; moves the cursor.
__device__ uint32_t attended(const MlaDenseArgs& a, Query* q, int begin) {
  const int lane = threadIdx.x % 32;
  const int left = q->visible - begin;
  const uint32_t seen = left <= 0 ? 0 : left >= kKeys ? kAll : (1u << left) - 1;
  if (q->indices == nullptr || seen == 0) return seen;
  const int64_t at = q->cursor + lane;
  const int index = at < a.k ? q->indices[at] : -1;
  const bool here = index >= 0 && index < begin + kKeys;
  const uint32_t mask = __reduce_or_sync(kAll, here ? 1u << (index - begin) : 0u);
  q->cursor += __popc(__ballot_sync(kAll, here));
  return mask & seen;
}

__device__ void load_queries(const MlaDenseArgs& a, int64_t t0, int64_t h, const Tile& tile) {
  const int width = static_cast<int>(a.nope + a.rope);
  for (int i = threadIdx.x; i < kRows * tile.width; i += kThreads) {
    const int r = i / tile.width, d = i % tile.width;
    const int64_t t = min(t0 + r, a.tokens - 1);
    tile.q[r * tile.stride + d] = d < width ? a.q[(t * a.heads + h) * width + d] : 0;
  }
}

// Keys begin .. of head h; those that no query sees are left as zeros.
__device__ void load_keys(const MlaDenseArgs& a, int64_t h, int begin, uint32_t any,
                          const Tile& tile) {
  const int nope = static_cast<int>(a.nope), rope = static_cast<int>(a.rope);
  const int64_t row = a.nope + a.v_dim;
  for (int i = threadIdx.x; i < kKeys * tile.width; i += kThreads) {
    const int r = i / tile.width, d = i % tile.width;
    const int64_t s = begin + r;
    float v = 0;
    if ((any >> r & 1) != 0 && d < nope + rope) {
      v = d < nope ? a.kv[(s * a.heads + h) * row + d] : a.k_pe[s * a.rope + d - nope];
    }
    tile.k[r * tile.stride + d] = v;
  }
}

template <int kColumns>
__device__ void add_values(const MlaDenseArgs& a, int64_t h, int begin, const Tile& tile,
                           const uint32_t (&mask)[kRows], uint32_t any, Values<kColumns>* v) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float alpha = tile.alpha[r];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v->sum[r][j] *= alpha;
  }
  for (uint32_t keys = any; keys != 0; keys &= keys - 1) {
    const int key = __ffs(static_cast<int>(keys)) - 1;
    const float* values = a.kv + ((begin + key) * a.heads + h) * (a.nope + a.v_dim) + a.nope;
    float value[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = threadIdx.x + kThreads * j;
      value[j] = d < a.v_dim ? values[d] : 0;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if ((mask[r] >> key & 1) == 0) continue;
      const float p = tile.p[key * kRows + r];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) v->sum[r][j] = fmaf(p, value[j], v->sum[r][j]);
    }
  }
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads, 2) mla_dense_kernel(const MlaDenseArgs a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ uint32_t masks[kRows];
  __shared__ float factor[kRows];
  const Tile tile = make_tile(shared, static_cast<int>(a.nope + a.rope));
  const int64_t t0 = static_cast<int64_t>(blockIdx.x) * kRows, h = blockIdx.y;
  const int lane = threadIdx.x % 32, row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  load_queries(a, t0, h, tile);
  Query query[kWarpRows];
  int most = 0;
  for (int r = 0; r < kWarpRows; ++r) query[r] = query_of(a, t0 + row + r);
  for (int r = 0; r < kRows; ++r) most = max(most, query_of(a, t0 + r).visible);
  Softmax softmax[kWarpRows];
  Values<kColumns> v;
  clear(&v);
  for (int begin = 0; begin < most; begin += kKeys) {
    __syncthreads();  // the last tile's weights and masks are read
    for (int r = 0; r < kWarpRows; ++r) masks[row + r] = attended(a, &query[r], begin);
    __syncthreads();
    uint32_t mask[kRows], any = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) any |= mask[r] = masks[r];
    if (any == 0) continue;
    load_keys(a, h, begin, any, tile);
    __syncthreads();
    float score[kWarpRows];
    scores(tile, score);
    for (int r = 0; r < kWarpRows; ++r) {
      update(tile, row + r, a.softmax_scale * score[r], (masks[row + r] >> lane & 1) != 0,
             a.round_bf16, &softmax[r]);
    }
    __syncthreads();
    add_values(a, h, begin, tile, mask, any, &v);
  }
  for (int r = 0; r < kWarpRows; ++r) factor[row + r] = 1.0f / softmax[r].sum;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = threadIdx.x + kThreads * j;
      if (t0 + r >= a.tokens || d >= a.v_dim) continue;
      a.out[((t0 + r) * a.heads + h) * a.v_dim + d] = v.sum[r][j] * factor[r];
    }
  }
}

template <int kColumns>
void launch(KernelContext& context, const MlaDenseArgs& a) {
  const int64_t bytes = tile_bytes(static_cast<int>(a.nope + a.rope));
  const auto kernel = mla_dense_kernel<kColumns>;
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), "mla_dense");
  const dim3 grid(static_cast<unsigned>((a.tokens + kRows - 1) / kRows),
                  static_cast<unsigned>(a.heads));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(a);
  check_launch("mla_dense");
}

}  // namespace

bool mla_dense_cuda_supports(const MlaDenseArgs& a) {
  return a.v_dim <= kMaxColumns * kThreads &&
         tile_bytes(static_cast<int>(a.nope + a.rope)) <= kSharedLimit;
}

void mla_dense_cuda(KernelContext& context, const MlaDenseArgs& a) {
  if (a.tokens == 0) return;
  if (a.v_dim <= kThreads) return launch<1>(context, a);
  if (a.v_dim <= 2 * kThreads) return launch<2>(context, a);
  launch<kMaxColumns>(context, a);
}

}  // namespace tamis
