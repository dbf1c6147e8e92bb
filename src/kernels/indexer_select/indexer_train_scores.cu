// The index scores of training by tiles of 64 tokens and 64 keys, with the bits of indexer_exact
// (indexer_logits.cu), which loads a tile of keys for one token alone: a dot product in the order
// of the dimensions with fused multiply-adds; heads group, group + 4, .. are added up in order, and
// then the four groups. A thread has 4 tokens and 4 keys: 8 reads of 16 bytes from shared memory
// for 64 multiply-adds. Bound by FP32 arithmetic.
#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int kTokens = 64, kKeys = 64, kThreads = 256, kGroups = 4;
constexpr int kOwnTokens = 4, kOwnKeys = 4, kTiles = 4;  // kTiles: of keys, a block

// Rows [0, rows) of `width` floats, `stride` apart, then zeros; width padded to fours with zeros.
__device__ void load_rows(const float* x, int64_t stride, int rows, int all, int width, int pitch,
                          float* to) {
  const bool quads = width % 4 == 0 && stride % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const int fours = (width + 3) / 4;
  for (int i = static_cast<int>(threadIdx.x); i < all * fours; i += kThreads) {
    const int r = i / fours, c = i % fours * 4;
    float4 v = make_float4(0, 0, 0, 0);
    if (r < rows) {
      const float* from = x + r * stride + c;
      if (quads) {
        v = *reinterpret_cast<const float4*>(from);
      } else {
        v.x = from[0];
        if (c + 1 < width) v.y = from[1];
        if (c + 2 < width) v.z = from[2];
        if (c + 3 < width) v.w = from[3];
      }
    }
    *reinterpret_cast<float4*>(to + r * pitch + c) = v;
  }
}

struct Scores {
  IndexerSelectTrainArgs a;
  int64_t first, end;  // tokens of the launch
  float* out;          // [tokens of the launch, stride]
  int64_t stride;
};

__global__ void __launch_bounds__(kThreads, 2) scores_kernel(const Scores s) {
  extern __shared__ __align__(16) float tiles[];
  const IndexerSelectTrainArgs& a = s.a;
  const int dim = static_cast<int>(a.dim), pitch = (dim + 3) / 4 * 4 + 4;
  float* keys = tiles;               // [kKeys][pitch]
  float* q = tiles + kKeys * pitch;  // [kTokens][pitch], of one head
  const int32_t* position = a.sequences.position;
  const auto at = [&](int64_t t) { return position == nullptr ? t : int64_t{position[t]}; };
  const int64_t t0 = s.first + int64_t{blockIdx.x} * kTokens, t_end = min(t0 + kTokens, s.end);
  const int64_t keys0 = int64_t{blockIdx.y} * kKeys * kTiles;  // within each sequence
  const int own_t = static_cast<int>(threadIdx.x) / 16 * kOwnTokens;
  const int own_k = static_cast<int>(threadIdx.x) % 16;
  // Tokens [begin, end) of the tile are of one sequence.
  for (int64_t begin = t0; begin < t_end;) {
    const int64_t sequence = begin - at(begin);
    const auto own = [&](int64_t t) { return t - at(t) == sequence; };
    int64_t end = t_end;
    if (!own(t_end - 1)) {  // between the last of its tokens and the first of another's
      int64_t last = begin;
      for (end = t_end - 1; end - last > 1;) {
        const int64_t middle = (last + end) / 2;
        (own(middle) ? last : end) = middle;
      }
    }
    if (at(end - 1) < a.k) {  // every one of them takes all of its keys
      begin = end;
      continue;
    }
    for (int64_t key0 = keys0; key0 < min(keys0 + kKeys * kTiles, at(end - 1) + 1); key0 += kKeys) {
      const int64_t seen = min(int64_t{kKeys}, at(end - 1) + 1 - key0);
      __syncthreads();
      load_rows(a.keys + (sequence + key0) * dim, dim, static_cast<int>(seen), kKeys, dim, pitch,
                keys);
      float score[kOwnTokens][kOwnKeys];
      for (int group = 0; group < kGroups; ++group) {
        float sum[kOwnTokens][kOwnKeys] = {};
        for (int64_t h = group; h < a.heads; h += kGroups) {
          __syncthreads();
          load_rows(a.q + (t0 * a.heads + h) * dim, a.heads * dim, static_cast<int>(t_end - t0),
                    kTokens, dim, pitch, q);
          __syncthreads();
          float dot[kOwnTokens][kOwnKeys] = {};
          for (int d = 0; d < dim; d += 4) {
            float4 x[kOwnTokens], k[kOwnKeys];
#pragma unroll
            for (int i = 0; i < kOwnTokens; ++i) {
              x[i] = *reinterpret_cast<const float4*>(q + (own_t + i) * pitch + d);
            }
#pragma unroll
            for (int j = 0; j < kOwnKeys; ++j) {
              k[j] = *reinterpret_cast<const float4*>(keys + (own_k + j * 16) * pitch + d);
            }
#pragma unroll
            for (int i = 0; i < kOwnTokens; ++i) {
#pragma unroll
              for (int j = 0; j < kOwnKeys; ++j) {
                dot[i][j] = fmaf(x[i].x, k[j].x, dot[i][j]);
                dot[i][j] = fmaf(x[i].y, k[j].y, dot[i][j]);
                dot[i][j] = fmaf(x[i].z, k[j].z, dot[i][j]);
                dot[i][j] = fmaf(x[i].w, k[j].w, dot[i][j]);
              }
            }
          }
#pragma unroll
          for (int i = 0; i < kOwnTokens; ++i) {
            const float w = t0 + own_t + i < t_end ? a.w[(t0 + own_t + i) * a.heads + h] : 0;
#pragma unroll
            for (int j = 0; j < kOwnKeys; ++j) {
              const float x = dot[i][j] < 0 ? 0.0f : dot[i][j];  // NaN stays
              sum[i][j] = fmaf(w, x, sum[i][j]);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kOwnTokens; ++i) {
#pragma unroll
          for (int j = 0; j < kOwnKeys; ++j) {
            score[i][j] = group == 0 ? sum[i][j] : score[i][j] + sum[i][j];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kOwnTokens; ++i) {
        const int64_t t = t0 + own_t + i;
        if (t < begin || t >= end) continue;
#pragma unroll
        for (int j = 0; j < kOwnKeys; ++j) {
          const int64_t key = key0 + own_k + j * 16;
          if (key <= at(t)) s.out[(t - s.first) * s.stride + key] = score[i][j];
        }
      }
    }
    begin = end;
  }
}

}  // namespace

void indexer_train_scores(KernelContext& context, const IndexerSelectTrainArgs& a,
                          const TrainScores& of, float* out, int64_t stride) {
  const int64_t pitch = (a.dim + 3) / 4 * 4 + 4;
  const auto bytes = static_cast<int>((kKeys + kTokens) * pitch * 4);
  allow_shared(reinterpret_cast<const void*>(scores_kernel), bytes, "indexer_train_scores");
  const dim3 grid(static_cast<unsigned>((of.tokens + kTokens - 1) / kTokens),
                  static_cast<unsigned>((of.longest + kKeys * kTiles - 1) / (kKeys * kTiles)));
  scores_kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(
      {a, of.first, of.first + of.tokens, out, stride});
  check_launch("indexer_train_scores");
}

}  // namespace tamis
