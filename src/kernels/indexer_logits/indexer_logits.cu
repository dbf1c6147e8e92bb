// indexer_logits on CUDA in float32, for any number of heads, any width and any key format.
//
// One block a (token, page of 64 keys). The page is turned to float once in shared memory; thread
// (group, key) adds heads group, group+4, .. of its key, four dot products at a time, each in the
// order of the dimensions with fused multiply-adds; the groups' sums are added in order. A score
// depends on its own (t, s) alone. Bound by FP32 arithmetic; the native path is indexer_mma.cu.
//
// A few heads of keys that come in fours: indexer_few.cuh.
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_logits/indexer_few.cuh"
#include "kernels/indexer_logits/indexer_logits_impl.h"

namespace tamis {
namespace {

using namespace indexer_few;  // this file is that header's body

// Score contributions of `group`'s heads, kAtOnce at a time. Written so that a NaN product stays
// NaN.
template <int kAtOnce>
__device__ float group_sum(const IndexerArgs& a, int64_t t, int dim, const float* key, int group) {
  constexpr int kAhead = kAtOnce == 1 ? 8 : 2;  // one chain of sums hides nothing by itself
  float sum = 0;
  for (int64_t h0 = group; h0 < a.heads; h0 += kGroups * kAtOnce) {
    const float* q[kAtOnce];
    float dot[kAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      q[j] = a.q + (t * a.heads + min(h0 + j * kGroups, a.heads - 1)) * dim;
    }
    int d = 0;
    if (reinterpret_cast<uintptr_t>(a.q) % 16 == 0 && dim % 4 == 0) {
#pragma unroll kAhead
      for (; d < dim; d += 4) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const float4 v = *reinterpret_cast<const float4*>(q[j] + d);
          dot[j] = fmaf(v.x, key[d], dot[j]);
          dot[j] = fmaf(v.y, key[d + 1], dot[j]);
          dot[j] = fmaf(v.z, key[d + 2], dot[j]);
          dot[j] = fmaf(v.w, key[d + 3], dot[j]);
        }
      }
    }
    for (; d < dim; ++d) {
      const float k = key[d];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) dot[j] = fmaf(q[j][d], k, dot[j]);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t h = h0 + j * kGroups;
      if (h < a.heads) sum = fmaf(a.w[t * a.heads + h], dot[j] < 0 ? 0.0f : dot[j], sum);
    }
  }
  return sum;
}

template <int kAtOnce>
__global__ void __launch_bounds__(kThreads)
    indexer_exact_kernel(const IndexerArgs a, const KvRows kv, const IndexerScores to) {
  extern __shared__ float shared[];  // [kKeys][dim + 1], then [kGroups][kKeys]
  const int dim = kv.index_dim, row = dim + 1;
  float* sums = shared + kKeys * row;
  const int64_t t = blockIdx.x;
  const int begin = static_cast<int>(blockIdx.y) * kKeys;
  const int visible = a.tokens.position[t] + 1;
  if (visible <= to.skip_visible) return;
  const int key = threadIdx.x % kKeys, group = threadIdx.x / kKeys;
  float* out = to.out + t * to.stride + begin;
  if (begin >= visible) {
    if (to.fill && group == 0 && begin + key < to.columns) out[key] = -INFINITY;
    return;
  }
  const std::byte* page = page_of(kv, a.tokens.sequences[a.tokens.sequence[t]], begin);
  const int keys = min(kKeys, visible - begin);
  if (kv.index_by_fours) {
    const int fours = dim / 4;
#pragma unroll 8
    for (int i = threadIdx.x; i < keys * fours; i += kThreads) {
      const int slot = i / fours, d = i % fours * 4;
      const float4 v = index_values(kv, page, slot, d);
      float* to = shared + slot * row + d;
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
  } else {
    for (int i = threadIdx.x; i < keys * dim; i += kThreads) {
      shared[i / dim * row + i % dim] = index_value(kv, page, i / dim, i % dim);
    }
  }
  __syncthreads();
  if (key < keys) {
    sums[group * kKeys + key] = group_sum<kAtOnce>(a, t, dim, shared + key * row, group);
  }
  __syncthreads();
  if (group != 0 || begin + key >= to.columns) return;
  if (key < keys) {
    float sum = sums[key];
    for (int g = 1; g < kGroups; ++g) sum += sums[g * kKeys + key];
    out[key] = sum;
  } else if (to.fill) {
    out[key] = -INFINITY;
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    indexer_exact_few(const IndexerArgs a, const KvRows kv, const IndexerScores to) {
  extern __shared__ __align__(16) float shared[];
  exact_few<kDim>(a, kv, to, blockIdx.x, static_cast<int>(blockIdx.y), shared);
}

}  // namespace

bool indexer_scores_rotate(const IndexerArgs& a, const RopeArgs& rope) {
  const int64_t dim = a.kv.layout.index_dim;
  return !indexer_scores_mma_supports(a) && takes_few(a, kv_rows(a.kv)) && rope.x == a.q &&
         rope.dim % 4 == 0 && rope.dim <= dim && rope.heads == a.heads && rope.head_stride == dim &&
         rope.token_stride == a.heads * dim;
}

void indexer_scores_exact(KernelContext& context, const IndexerArgs& a, const IndexerScores& to) {
  const KvRows kv = kv_rows(a.kv);
  const auto dim = static_cast<int>(a.kv.layout.index_dim);
  const bool few = takes_few(a, kv);
  const auto kernel = few && is_usual(kv)  ? indexer_exact_few<kUsualDim>
                      : few                ? indexer_exact_few<0>
                      : a.heads <= kGroups ? indexer_exact_kernel<1>
                                           : indexer_exact_kernel<4>;
  const int64_t bytes = few ? few_bytes(dim) : (int64_t{kKeys} * (dim + 1) + kThreads) * int64_t{4};
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), "indexer_exact");
  const dim3 grid(static_cast<unsigned>(a.tokens.num_tokens),
                  static_cast<unsigned>((to.columns + kKeys - 1) / kKeys));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(a, kv, to);
  check_launch("indexer_exact");
}

void indexer_scores_cuda(KernelContext& context, const IndexerArgs& a, const IndexerScores& to) {
  if (a.tokens.num_tokens == 0 || to.columns == 0) return;
  indexer_scores_mma_supports(a) ? indexer_scores_mma(context, a, to)
                                 : indexer_scores_exact(context, a, to);
}

void indexer_logits_cuda(KernelContext& context, const IndexerLogitsArgs& args) {
  indexer_scores_cuda(context, args.in,
                      {args.logits, args.logits_stride, args.logits_stride, 0, true, {}});
}

}  // namespace tamis
