// What the float32 kernels of mla_sparse share: the chunks of a list, their parts in scratch
// memory, and the way of cache rows into shared memory.
#pragma once

#include "kernels/cuda/attention_exact.cuh"
#include "kernels/cuda/attention_list.cuh"
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis::exact {

// Short chunks: a block's time is that of its chunk, and one token has to fill the GPU.
constexpr int kChunk = 32;

// Where blocks leave parts and the final softmax of each row.
struct Parts {
  float* sums = nullptr;     // [tokens, chunks, heads, kv_lora]
  Softmax* stats = nullptr;  // [tokens, chunks, heads]; without parts [tokens, heads]
  int chunks = 0;            // 0: one block a list
};

// Entries [begin, begin + 32) of the list; returns how many there are. Every thread agrees.
// kAhead: pieces of a row on their way at once.
template <int kBlock, int kAhead>
__device__ inline int load_keys(const AttentionList& list, const KvRows& kv, int begin, int end,
                                const Tile& tile) {
  const int lane = threadIdx.x % 32;
  const int position = begin + lane < end ? list.entry(begin + lane) : -1;
  const uint32_t valid = __ballot_sync(kAll, position >= 0);
  const int count = valid == kAll ? kKeys : __ffs(~valid) - 1;
  constexpr int kWarps = kBlock / 32, kEach = kKeys / kWarps;  // rows of a warp
  const int first = static_cast<int>(threadIdx.x) / 32, width = kv.kv_lora + kv.rope;
  const std::byte* row[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int r = first + i * kWarps, p = __shfl_sync(kAll, position, r);
    row[i] = r < count ? latent_row(kv, list.sequence, p) : nullptr;
  }
  if (!kv.latent_by_fours) {
    for (int i = 0; i < kEach; ++i) {
      for (int d = lane; d < tile.width; d += 32) {
        const bool inside = row[i] != nullptr && d < width;
        tile.k[(first + i * kWarps) * tile.stride + d] = inside ? latent_value(kv, row[i], d) : 0;
      }
    }
    return count;
  }
  // All rows of a warp, kAhead pieces of each, are on their way at once.
  constexpr int kPiece = 32 * 4;
  for (int d0 = lane * 4; d0 < tile.width; d0 += kAhead * kPiece) {
    float4 v[kAhead][kEach];
#pragma unroll
    for (int p = 0; p < kAhead; ++p) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int d = d0 + p * kPiece;
        v[p][i] = make_float4(0, 0, 0, 0);
        if (row[i] != nullptr && d < width) v[p][i] = latent_values(kv, row[i], d);
      }
    }
#pragma unroll
    for (int p = 0; p < kAhead; ++p) {
      const int d = d0 + p * kPiece;
      if (d >= tile.width) continue;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        *reinterpret_cast<float4*>(tile.k + (first + i * kWarps) * tile.stride + d) = v[p][i];
      }
    }
  }
  return count;
}

// mla_sparse for few tokens (mla_exact_few.cu): true if it takes them. parts.chunks is set.
bool attend_few(KernelContext& context, const MlaSparseArgs& a, const Parts& parts);

}  // namespace tamis::exact
