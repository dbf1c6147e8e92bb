// The index scores of training by tiles of 32 tokens and 64 keys, with the bits of indexer_exact
// (indexer_logits.cu), which loads a tile of keys for one token alone: a dot product in the order
// of the dimensions with fused multiply-adds; heads group, group + 4, .. are added up in order, and
// then the four groups. A thread has 2 tokens and 4 keys. Bound by FP32 arithmetic and by reads of
// shared memory.
#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int kTokens = 32, kKeys = 64, kThreads = 256, kGroups = 4;
constexpr int kOwnTokens = 2, kOwnKeys = 4;

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

__global__ void __launch_bounds__(kThreads) scores_kernel(const Scores s) {
  extern __shared__ __align__(16) float tiles[];
  const IndexerSelectTrainArgs& a = s.a;
  const int dim = static_cast<int>(a.dim), pitch = (dim + 3) / 4 * 4 + 4;
  float* keys = tiles;               // [kKeys][pitch]
  float* q = tiles + kKeys * pitch;  // [kTokens][pitch], of one head
  const int32_t* position = a.sequences.position;
  const auto at = [&](int64_t t) { return position == nullptr ? t : int64_t{position[t]}; };
  const int64_t t0 = s.first + int64_t{blockIdx.x} * kTokens, t_end = min(t0 + kTokens, s.end);
  const int64_t key0 = int64_t{blockIdx.y} * kKeys;  // within each sequence
  const int own_t = static_cast<int>(threadIdx.x) / 16 * kOwnTokens;
  const int own_k = static_cast<int>(threadIdx.x) % 16;
  // Tokens [begin, end) of the tile are of one sequence.
  for (int64_t begin = t0; begin < t_end;) {
    const int64_t sequence = begin - at(begin);
    int64_t end = begin + 1;
    while (end < t_end && end - at(end) == sequence) ++end;
    if (key0 <= at(end - 1)) {
      const int64_t seen = min(int64_t{kKeys}, at(end - 1) + 1 - key0);
      __syncthreads();
      load_rows(a.keys + (sequence + key0) * dim, dim, static_cast<int>(seen), kKeys, dim, pitch,
                keys);
      float sum[kOwnTokens][kOwnKeys][kGroups] = {};
      for (int64_t h0 = 0; h0 < a.heads; h0 += kGroups) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const int64_t h = h0 + g;
          if (h >= a.heads) break;
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
              sum[i][j][g] = fmaf(w, x, sum[i][j][g]);
            }
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
          float x = sum[i][j][0];
#pragma unroll
          for (int g = 1; g < kGroups; ++g) x += sum[i][j][g];
          if (key <= at(t)) s.out[(t - s.first) * s.stride + key] = x;
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
                  static_cast<unsigned>((of.longest + kKeys - 1) / kKeys));
  scores_kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(
      {a, of.first, of.first + of.tokens, out, stride});
  check_launch("indexer_train_scores");
}

}  // namespace tamis
