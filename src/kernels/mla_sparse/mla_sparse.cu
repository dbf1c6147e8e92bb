// mla_sparse on CUDA in float32: any number of heads, latents up to 512 wide, any cache format.
//
//   score = scale (q_latent . c_kv + q_pe . k_pe),  out = softmax(score) c_kv over the token's list
//
// A block takes 8 heads of a token and its list in tiles of 32 entries: the rows are gathered and
// turned to float once in shared memory (76 KB) for all 8 heads; scores and softmax as in
// attention_exact.cuh; then each thread adds its columns, entry by entry in order. Chunks of the
// list (attention_list.cuh) are folded in registers, or, when there are few tokens, made by blocks
// of their own and folded by mla_combine: the same operations in the same order.
// Bound by FP32 arithmetic. The native path is mla_sparse_mma.cuh.
#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/mla_sparse/mla_exact.cuh"
#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace exact;  // this file is that header's body

constexpr int kMaxColumns = 4;
constexpr int64_t kSharedLimit = 99 * 1024;  // what every GPU from sm_80 on gives a block

__device__ void load_queries(const MlaSparseArgs& a, const KvRows& kv, int64_t t, int64_t head0,
                             const Tile& tile) {
  constexpr int kAhead = 3;
  for (int d0 = threadIdx.x; d0 < tile.width; d0 += kAhead * kThreads) {
    float v[kAhead][kRows];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int d = d0 + i * kThreads;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t h = min(head0 + r, a.heads - 1);
        v[i][r] = 0;
        if (d < kv.kv_lora) {
          v[i][r] = a.q_latent[(t * a.heads + h) * kv.kv_lora + d];
        } else if (d < kv.kv_lora + kv.rope) {
          v[i][r] = a.q_pe[t * a.q_pe_token_stride + h * a.q_pe_head_stride + d - kv.kv_lora];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int d = d0 + i * kThreads;
      if (d >= tile.width) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) tile.q[r * tile.stride + d] = v[i][r];
    }
  }
}

template <int kColumns>
__device__ void add_values(const Tile& tile, int count, Values<kColumns>* v) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float alpha = tile.alpha[r];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v->sum[r][j] *= alpha;
  }
  for (int key = 0; key < count; ++key) {
    float value[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      value[j] = tile.k[key * tile.stride + threadIdx.x + kThreads * j];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float p = tile.p[key * kRows + r];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) v->sum[r][j] = fmaf(p, value[j], v->sum[r][j]);
    }
  }
}

// Chunk `c` from nothing: its softmax (of the warp's two rows) and sums.
template <int kColumns>
__device__ void attend_chunk(const MlaSparseArgs& a, const KvRows& kv, const AttentionList& list,
                             int c, const Tile& tile, Softmax (&softmax)[kWarpRows],
                             Values<kColumns>* v) {
  clear(v);
  for (Softmax& s : softmax) s = {};
  const int end = min((c + 1) * list.chunk, list.length);
  for (int begin = c * list.chunk; begin < end; begin += kKeys) {
    __syncthreads();  // the last tile's values are read
    const int count = load_keys<kThreads, 3>(list, kv, begin, end, tile);
    if (count == 0) break;
    __syncthreads();
    float score[kWarpRows];
    scores(tile, score);
    for (int r = 0; r < kWarpRows; ++r) {
      update(tile, static_cast<int>(threadIdx.x) / 32 * kWarpRows + r, a.softmax_scale * score[r],
             static_cast<int>(threadIdx.x) % 32 < count, a.round_bf16, &softmax[r]);
    }
    __syncthreads();
    add_values(tile, count, v);
    if (count < kKeys) break;
  }
}

// Sums and softmax of the block's rows to place `at` of `parts`.
template <int kColumns>
__device__ void store_part(const Parts& parts, int64_t at, int rows, int width,
                           const Softmax (&softmax)[kWarpRows], const Values<kColumns>& v) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = threadIdx.x + kThreads * j;
      if (r < rows && d < width) parts.sums[(at + r) * width + d] = v.sum[r][j];
    }
  }
  const int row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  if (threadIdx.x % 32 != 0) return;
  for (int r = 0; r < kWarpRows; ++r) {
    if (row + r < rows) parts.stats[at + row + r] = softmax[r];
  }
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads, 2)
    mla_exact_kernel(const MlaSparseArgs a, const KvRows kv, const Parts parts) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float factor[2][kRows];
  const Tile tile = make_tile(shared, kv.kv_lora + kv.rope);
  const int64_t t = blockIdx.x, head0 = static_cast<int64_t>(blockIdx.y) * kRows;
  const int rows = static_cast<int>(min(a.heads - head0, int64_t{kRows}));
  const AttentionList list = list_of(a, t, kChunk);
  Softmax softmax[kWarpRows];
  Values<kColumns> v;
  if (parts.chunks != 0 && !list.has_chunk(blockIdx.z)) return;
  load_queries(a, kv, t, head0, tile);
  if (parts.chunks != 0) {
    attend_chunk(a, kv, list, blockIdx.z, tile, softmax, &v);
    const int64_t at = (t * parts.chunks + blockIdx.z) * a.heads + head0;
    return store_part(parts, at, rows, kv.kv_lora, softmax, v);
  }
  attend_chunk(a, kv, list, 0, tile, softmax, &v);
  const int row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  for (int c = 1; c < list.chunks() && list.has_chunk(c); ++c) {
    Values<kColumns> part;
    Softmax part_softmax[kWarpRows];
    attend_chunk(a, kv, list, c, tile, part_softmax, &part);
    __syncthreads();
    for (int r = 0; r < kWarpRows; ++r) {
      const Fold f = fold(softmax[r], part_softmax[r], &softmax[r]);
      factor[0][row + r] = f.left;
      factor[1][row + r] = f.right;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        v.sum[r][j] = fmaf(v.sum[r][j], factor[0][r], part.sum[r][j] * factor[1][r]);
      }
    }
  }
  __syncthreads();
  for (int r = 0; r < kWarpRows; ++r) factor[0][row + r] = 1.0f / softmax[r].sum;
  if (parts.stats != nullptr && threadIdx.x % 32 == 0) {
    for (int r = 0; r < kWarpRows; ++r) {
      if (row + r < rows) parts.stats[t * a.heads + head0 + row + r] = softmax[r];
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int d = threadIdx.x + kThreads * j;
      if (r < rows && d < kv.kv_lora) {
        a.out[(t * a.heads + head0 + r) * kv.kv_lora + d] = v.sum[r][j] * factor[0][r];
      }
    }
  }
}

// One block a (token, head): folds the parts in order.
__global__ void __launch_bounds__(kThreads)
    mla_exact_combine(const MlaSparseArgs a, const KvRows kv, const Parts parts) {
  const int64_t t = blockIdx.x, h = blockIdx.y;
  const AttentionList list = list_of(a, t, kChunk);
  __shared__ float tops[kMaxChunks], totals[kMaxChunks];
  const int mine = static_cast<int>(threadIdx.x);
  const bool here = mine < list.chunks() && list.has_chunk(mine);
  if (here) {
    const Softmax s = parts.stats[(t * parts.chunks + mine) * a.heads + h];
    tops[mine] = s.max;
    totals[mine] = s.sum;
  }
  const int chunks = __syncthreads_count(here);
  Softmax softmax{tops[0], totals[0]};
  float sum[kMaxColumns];
#pragma unroll 4
  for (int c = 0; c < chunks; ++c) {
    const float* part = parts.sums + ((t * parts.chunks + c) * a.heads + h) * kv.kv_lora;
    Fold f{0, 1};
    if (c > 0) f = fold(softmax, {tops[c], totals[c]}, &softmax);
#pragma unroll
    for (int j = 0; j < kMaxColumns; ++j) {
      const int d = threadIdx.x + kThreads * j;
      if (d >= kv.kv_lora) continue;
      sum[j] = c == 0 ? part[d] : fmaf(sum[j], f.left, part[d] * f.right);
    }
  }
  const float factor = 1.0f / softmax.sum;
#pragma unroll
  for (int j = 0; j < kMaxColumns; ++j) {
    const int d = threadIdx.x + kThreads * j;
    if (d < kv.kv_lora) a.out[(t * a.heads + h) * kv.kv_lora + d] = sum[j] * factor;
  }
}

// mass[t, s] = sum over heads in order of P[t,h,s]: the scores again, with the finished softmax.
__global__ void __launch_bounds__(kThreads)
    mla_mass_kernel(const MlaSparseArgs a, const KvRows kv, const Softmax* stats) {
  extern __shared__ __align__(16) float shared[];
  const Tile tile = make_tile(shared, kv.kv_lora + kv.rope);
  const int64_t t = blockIdx.x;
  const int begin = static_cast<int>(blockIdx.y) * kKeys, lane = threadIdx.x % 32;
  const AttentionList list = list_of(a, t);
  if (list.entry(begin) < 0) return;
  const int count = load_keys<kThreads, 3>(list, kv, begin, list.length, tile);
  const int row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  float mass = 0;
  for (int64_t head0 = 0; head0 < a.heads; head0 += kRows) {
    __syncthreads();
    load_queries(a, kv, t, head0, tile);
    __syncthreads();
    float score[kWarpRows];
    scores(tile, score);
    for (int r = 0; r < kWarpRows; ++r) {
      const Softmax s = stats[t * a.heads + min(head0 + row + r, a.heads - 1)];
      const float p = expf(a.softmax_scale * score[r] - s.max) / s.sum;
      tile.p[lane * kRows + row + r] = a.round_bf16 ? round_bf16(p) : p;
    }
    __syncthreads();
    const int rows = static_cast<int>(min(a.heads - head0, int64_t{kRows}));
    for (int r = 0; r < rows; ++r) mass += tile.p[lane * kRows + r];
  }
  if (threadIdx.x < count) a.mass[t * a.mass_stride + list.entry(begin + lane)] = mass;
}

template <int kColumns>
void launch(KernelContext& context, const MlaSparseArgs& a, const Parts& parts) {
  const KvRows kv = kv_rows(a.kv);
  const int64_t bytes = tile_bytes(kv.kv_lora + kv.rope);
  const auto kernel = mla_exact_kernel<kColumns>;
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), "mla_exact");
  const dim3 grid(static_cast<unsigned>(a.tokens.num_tokens),
                  static_cast<unsigned>((a.heads + kRows - 1) / kRows),
                  static_cast<unsigned>(std::max(parts.chunks, 1)));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(a, kv, parts);
  check_launch("mla_exact");
}

void attend(KernelContext& context, const MlaSparseArgs& a, const Parts& parts) {
  const int64_t c = a.kv.layout.kv_lora;
  if (c <= kThreads) return launch<1>(context, a, parts);
  if (c <= 2 * kThreads) return launch<2>(context, a, parts);
  launch<kMaxColumns>(context, a, parts);
}

void write_mass(KernelContext& context, const MlaSparseArgs& a, const Softmax* stats) {
  const KvRows kv = kv_rows(a.kv);
  const int64_t bytes = tile_bytes(kv.kv_lora + kv.rope), n = a.tokens.num_tokens;
  context.device()->fill(a.mass, 0, n * a.mass_stride * 4);
  allow_shared(reinterpret_cast<const void*>(mla_mass_kernel), static_cast<int>(bytes), "mla_mass");
  const dim3 grid(static_cast<unsigned>(n),
                  static_cast<unsigned>((longest_list(a) + kKeys - 1) / kKeys));
  mla_mass_kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(a, kv, stats);
  check_launch("mla_mass");
}

}  // namespace

bool mla_sparse_cuda_supports(const MlaSparseArgs& a) {
  const KvLayout& l = a.kv.layout;
  return l.kv_lora <= kMaxColumns * kThreads &&
         tile_bytes(static_cast<int>(l.kv_lora + l.rope)) <= kSharedLimit;
}

void mla_sparse_cuda(KernelContext& context, const MlaSparseArgs& a) {
  const int64_t n = a.tokens.num_tokens, chunks = most_chunks(a, kChunk);
  if (n == 0) return;
  if (a.indices == nullptr && a.tokens.max_context < 1) {
    throw UsageError("[mla_sparse] tokens.max_context is not set: the cuda back end needs it");
  }
  Parts parts;
  if (a.mass != nullptr) {
    parts.stats = static_cast<Softmax*>(device_scratch(context, 1, n * a.heads * 8));
    attend(context, a, parts);
    return write_mass(context, a, parts.stats);
  }
  const int64_t blocks = n * ((a.heads + kRows - 1) / kRows);
  if (blocks >= 4 * context.device()->info().multiprocessors) return attend(context, a, parts);
  parts.chunks = static_cast<int>(chunks);
  const int64_t rows = n * chunks * a.heads, c = a.kv.layout.kv_lora;
  parts.sums = static_cast<float*>(device_scratch(context, 0, rows * c * 4));
  parts.stats = static_cast<Softmax*>(device_scratch(context, 1, rows * 8));
  if (attend_few(context, a, parts)) return;
  if (chunks == 1) return attend(context, a, {});
  attend(context, a, parts);
  const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>(a.heads));
  mla_exact_combine<<<grid, kThreads, 0, stream_of(context)>>>(a, kv_rows(a.kv), parts);
  check_launch("mla_exact_combine");
}

}  // namespace tamis
