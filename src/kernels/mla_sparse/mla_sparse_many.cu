// mla_sparse in training on CUDA for more heads than mla_sparse_few.cu takes, by blocks of tokens.
// All factors are packed once as bf16 values (split_tiles.cuh). Forward, for each token,
//
//   scores_kernel  S = Q K^T of 128 heads by 128 gathered rows to memory in float32, with the
//                  maximum and the sum of exponentials of every 64 of them
//   softmax_kernel the log sums of the heads, P, packed as well, and its mean over heads
//   product_kernel P V over gathered rows
//
// and backward
//
//   scores_kernel  S, dP = dO V^T, and from them, with the log sums and outputs of the forward
//                  pass, P and dS, packed as well
//   product_kernel dQ = dS K over gathered rows
//   product_kernel the gradients of the rows, dS^T Q + P^T dO, in float32
//
// and scatter_rows adds those in the order of the tokens. Tiles come to shared memory by
// asynchronous copies, kStages ahead. Sums in float32 in an order that depends on shapes alone.
// Bound by the tensor cores and by moving scores and the gradients of rows through memory.
#include <algorithm>

#include "kernels/cuda/split_tiles.cuh"
#include "kernels/cuda/train_rows.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace split_tiles;  // this file is a body of that header

using Args = MlaSparseBackwardArgs<float>;

constexpr int kWide = 128;  // heads or rows of a tile
constexpr int kRun = 64;    // rows that a maximum and a sum of exponentials are of
constexpr int kPackedSlot = 0, kOutSlot = 1, kRowsSlot = 2, kLogSlot = 3;  // scatter_rows has 7

// Values of one matrix with rows of bf16: row i at x + i * row, its low parts `part` behind.
struct Matrix {
  const uint16_t* x;
  int64_t row, part;
};

struct Many {
  Args a;
  int latent, width, stride;  // padded to whole steps of 16: kv_lora, with rope, k
  // [first + tokens][parts][width], and of the block [tokens][heads][parts][width, latent]
  const uint16_t *rows, *q, *d_o;
  uint16_t *p, *ds;              // [tokens of the block][heads][parts][stride]
  const int32_t* counts;         // [tokens]: entries of a token's set
  const float *log_sum, *delta;  // [tokens, heads]
  int64_t first;                 // token of the block's first
  float* row_gradients;          // [tokens of the block, k, kv_lora + rope]
  // Forward.
  float* s;                          // [tokens of the block][heads][stride], base 2
  float2* runs;                      // [tokens of the block][heads][runs_of(stride)]
  float *out, *to_log_sum, *target;  // of MlaSparseTrainArgs
};

__host__ __device__ inline int runs_of(int stride) { return (stride + kRun - 1) / kRun; }

// ---- packing

// to [rows][parts][width] <- columns [0, n) of x, then zeros to `second`, columns [0, more_n) of
// more, zeros. Eight columns a thread.
struct Pack {
  const float *x, *more;
  int64_t rows, x_stride, more_stride;
  int n, second, more_n, width;
  uint16_t* to;
};

// Values [c, c + 8) of a row of n.
__device__ inline void load_eight(const float* row, int c, int n, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    if (c + i + 4 <= n && reinterpret_cast<uintptr_t>(row + c + i) % 16 == 0) {
      const float4 x = *reinterpret_cast<const float4*>(row + c + i);
      v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) v[i + j] = c + i + j < n ? row[c + i + j] : 0;
  }
}

__device__ inline uint4 rounded(const float (&v)[8]) {
  return make_uint4(ptx::pack_bf16(v[0], v[1]), ptx::pack_bf16(v[2], v[3]),
                    ptx::pack_bf16(v[4], v[5]), ptx::pack_bf16(v[6], v[7]));
}

template <int kParts>
__global__ void __launch_bounds__(kThreads) pack_kernel(const Pack p) {
  const int eights = p.width / 8;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, r = i / eights;
  if (r >= p.rows) return;
  const int c = static_cast<int>(i - r * eights) * 8;
  float v[8] = {};
  if (c < p.second) {  // a multiple of 16, as every part's begin
    load_eight(p.x + r * p.x_stride, c, p.n, v);
  } else {
    load_eight(p.more + r * p.more_stride, c - p.second, p.more_n, v);
  }
  uint16_t* to = p.to + r * kParts * p.width + c;
  *reinterpret_cast<uint4*>(to) = rounded(v);
  if constexpr (kParts == 2) {
#pragma unroll
    for (float& x : v) x = low_part(x);
    *reinterpret_cast<uint4*>(to + p.width) = rounded(v);
  }
}

// delta [rows] = d_out . out, a warp a row.
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const float* d_out, const float* out, int64_t rows, int64_t width, float* delta) {
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (r >= rows) return;
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; c < width; c += 32) {
    sum = fmaf(d_out[r * width + c], out[r * width + c], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[r] = sum;
}

// A search by every block would be a dozen reads that wait for each other.
__global__ void __launch_bounds__(kThreads)
    count_entries_kernel(const int32_t* indices, int64_t tokens, int64_t k, int32_t* counts) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t < tokens) counts[t] = entries(indices + t * k, k);
}

// ---- tiles

// The pieces of 8 columns of a tile that a thread copies.
template <int kRows, int kCols>
struct Pieces {
  static constexpr int kOfRow = kCols / 8, kEach = kRows * kOfRow / kThreads;
  static_assert(kRows * kOfRow % kThreads == 0);
  static __device__ int row(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) / kOfRow;
  }
  static __device__ int col(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) % kOfRow * 8;
  }
};

// Starts to copy rows row[i] and columns [col0, col0 + kCols) of a matrix to a tile; zeros where
// the row is negative, and past `cols`.
template <int kParts, int kRows, int kCols>
__device__ inline void copy(const Tile& to, const Matrix& m,
                            const int (&row)[Pieces<kRows, kCols>::kEach], int col0, int cols) {
  using P = Pieces<kRows, kCols>;
#pragma unroll
  for (int i = 0; i < P::kEach; ++i) {
    const int c = P::col(i);
    const bool there = row[i] >= 0 && col0 + c < cols;
    const uint16_t* from = m.x + (there ? row[i] * m.row + col0 + c : 0);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      ptx::cp_async_16(to.x + p * to.part + P::row(i) * to.pitch + c, from + p * m.part, there);
    }
  }
}

// Rows [row0, rows) of a matrix, or of those the entries of a set. The entries are read before they
// are needed: the copies wait for them.
template <int kRows, int kCols>
struct RowNumbers {
  int row[Pieces<kRows, kCols>::kEach];

  __device__ void plain(int row0, int rows) {
#pragma unroll
    for (int i = 0; i < Pieces<kRows, kCols>::kEach; ++i) {
      const int r = row0 + Pieces<kRows, kCols>::row(i);
      row[i] = r < rows ? r : -1;
    }
  }
  __device__ void gathered(const int32_t* set, int row0, int rows) {
    plain(row0, rows);
#pragma unroll
    for (int& r : row) r = r >= 0 ? set[r] : -1;
  }
};

template <int kStages, typename Load, typename Use>
__device__ inline void pipeline(int count, const Load& load, const Use& use) {
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < count) load(i, i);
    ptx::cp_async_commit();
  }
  for (int i = 0; i < count; ++i) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // stage i is there for all, and what stage i - 1 held is multiplied
    if (i + kStages - 1 < count) load(i + kStages - 1, (i + kStages - 1) % kStages);
    ptx::cp_async_commit();
    use(i, i % kStages);
  }
}

template <int kParts>
__device__ inline Tile tile_of(uint16_t* x, int rows, int cols) {
  return {x, cols + 8, rows * (cols + 8)};
}

// ---- scores

// Columns of a sum in shared memory at once, and how many of those.
template <int kParts, bool kBackward>
struct ScoresShared {
  static constexpr int kStep = 32, kStages = kParts == 1 ? 4 : 3;
  static constexpr int kTile = kParts * kWide * (kStep + 8);
  uint16_t q[kStages][kTile], rows[kStages][kTile],
      d_o[kBackward ? kStages : 1][kBackward ? kTile : 8];
};

// P and dS of the thread's values from their products.
template <int kParts>
__device__ inline void store_gradients(const Many& m, int64_t token, int h, int c, int n,
                                       const float (&s)[2], const float (&dp)[2], float log_sum,
                                       float delta) {
  const int64_t at = (token * m.a.heads + h) * kParts * m.stride + c;
  const float scale = m.a.softmax_scale * kLog2e;
  float p[2], ds[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    p[e] = c + e < n ? exp2f(scale * s[e] - log_sum) : 0;
    ds[e] = m.a.softmax_scale * p[e] * (dp[e] - delta);
  }
  *reinterpret_cast<uint32_t*>(m.p + at) = ptx::pack_bf16(p[0], p[1]);
  *reinterpret_cast<uint32_t*>(m.ds + at) = ptx::pack_bf16(ds[0], ds[1]);
  if constexpr (kParts == 2) {
    *reinterpret_cast<uint32_t*>(m.p + at + m.stride) =
        ptx::pack_bf16(low_part(p[0]), low_part(p[1]));
    *reinterpret_cast<uint32_t*>(m.ds + at + m.stride) =
        ptx::pack_bf16(low_part(ds[0]), low_part(ds[1]));
  }
}

// The scores of a head and kRun rows from column c0 on, of which the thread has 16.
__device__ inline void store_scores(const Many& m, int64_t token, int h, int c0, int n,
                                    float (&s)[16], bool there) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = m.a.softmax_scale * kLog2e;
  float* to = m.s + (token * m.a.heads + h) * m.stride;
  float most = -INFINITY, sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int c = c0 + j * 8 + lane % 4 * 2;
    s[2 * j] *= scale, s[2 * j + 1] *= scale;
    if (there && c < m.stride) {
      *reinterpret_cast<float2*>(to + c) = make_float2(s[2 * j], s[2 * j + 1]);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (c + e < n) most = ptx::max_nan(most, s[2 * j + e]);
    }
  }
  for (int o = 1; o < 4; o *= 2) most = ptx::max_nan(most, __shfl_xor_sync(0xFFFFFFFFu, most, o));
  const float top = most == -INFINITY ? 0 : most;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    if (c0 + j / 2 * 8 + lane % 4 * 2 + j % 2 < n) sum += exp2f(s[j] - top);
  }
  for (int o = 1; o < 4; o *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
  if (there && c0 < n && lane % 4 == 0) {
    m.runs[(token * m.a.heads + h) * runs_of(m.stride) + c0 / kRun] = make_float2(most, sum);
  }
}

// A warp has 32 heads by 64 rows. What a tile without entries would be is not written.
template <int kParts, bool kBackward>
__global__ void __launch_bounds__(kThreads, kBackward || kParts == 2 ? 1 : 2)
    scores_kernel(const Many m) {
  using Shared = ScoresShared<kParts, kBackward>;
  constexpr int kStep = Shared::kStep;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const int64_t t = m.first + blockIdx.z, heads = m.a.heads;
  const int h0 = static_cast<int>(blockIdx.y) * kWide, k0 = static_cast<int>(blockIdx.x) * kWide;
  const int32_t* set = m.a.indices + t * m.a.k;
  const int n = m.counts[t];
  if (k0 >= n) return;
  const Matrix q{m.q + int64_t{blockIdx.z} * heads * kParts * m.width, int64_t{kParts} * m.width,
                 m.width};
  const Matrix d_o{m.d_o + int64_t{blockIdx.z} * heads * kParts * m.latent,
                   int64_t{kParts} * m.latent, m.latent};
  const Matrix rows{m.rows, int64_t{kParts} * m.width, m.width};
  RowNumbers<kWide, kStep> own_heads, own_rows;
  own_heads.plain(h0, static_cast<int>(heads));
  own_rows.gathered(set, k0, static_cast<int>(m.a.k));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int own_h = warp / 2 * 32, own_k = warp % 2 * 64;
  float s[2][4][2][4] = {}, dp[kBackward ? 2 : 1][4][2][4] = {};
  const auto tile = [](uint16_t* x) { return tile_of<kParts>(x, kWide, kStep); };
  pipeline<Shared::kStages>(
      (m.width + kStep - 1) / kStep,
      [&](int i, int stage) {
        const int c = i * kStep;
        copy<kParts, kWide, kStep>(tile(shared.rows[stage]), rows, own_rows.row, c, m.width);
        copy<kParts, kWide, kStep>(tile(shared.q[stage]), q, own_heads.row, c, m.width);
        if constexpr (kBackward) {
          if (c < m.latent) {
            copy<kParts, kWide, kStep>(tile(shared.d_o[stage]), d_o, own_heads.row, c, m.latent);
          }
        }
      },
      [&](int i, int stage) {
#pragma unroll
        for (int c = 0; c < kStep; c += 16) {
          Factor<kParts> b[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            b[j] = right_rows<kParts>(tile(shared.rows[stage]), own_k + j * 16, c);
          }
#pragma unroll
          for (int g = 0; g < 2; ++g) {
            const Factor<kParts> a = left<kParts>(tile(shared.q[stage]), own_h + g * 16, c);
#pragma unroll
            for (int j = 0; j < 4; ++j) multiply<kParts>(s[g][j], a, b[j]);
          }
          if constexpr (kBackward) {
            if (i * kStep + c >= m.latent) continue;
#pragma unroll
            for (int g = 0; g < 2; ++g) {
              const Factor<kParts> a = left<kParts>(tile(shared.d_o[stage]), own_h + g * 16, c);
#pragma unroll
              for (int j = 0; j < 4; ++j) multiply<kParts>(dp[g][j], a, b[j]);
            }
          }
        }
      });
#pragma unroll
  for (int g = 0; g < 2; ++g) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int h = h0 + own_h + g * 16 + r * 8 + lane / 4;
      if constexpr (kBackward) {
        if (h >= heads) continue;
        const float log_sum = m.log_sum[t * heads + h], delta = m.delta[t * heads + h];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int c = k0 + own_k + j * 8 + lane % 4 * 2;
          if (c >= m.stride) continue;
          const auto& own_s = s[g][j / 2][j % 2];
          const auto& own_dp = dp[g][j / 2][j % 2];
          store_gradients<kParts>(m, blockIdx.z, h, c, n, {own_s[2 * r], own_s[2 * r + 1]},
                                  {own_dp[2 * r], own_dp[2 * r + 1]}, log_sum, delta);
        }
      } else {
        float own[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) own[j] = s[g][j / 4][j / 2 % 2][2 * r + j % 2];
        store_scores(m, blockIdx.z, h, k0 + own_k, n, own, h < heads);
      }
    }
  }
}

// A block a token: its heads' log sums, P from its scores, and the mean of P.
template <int kParts>
__global__ void __launch_bounds__(kThreads) softmax_kernel(const Many m) {
  extern __shared__ float2 tops[];  // [heads]: maximum, 1 / sum
  const int64_t token = blockIdx.x, t = m.first + token, heads = m.a.heads, k = m.a.k;
  const int n = m.counts[t], runs = (n + kRun - 1) / kRun;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t h = warp; h < heads; h += kWarps) {
    const float2* own = m.runs + (token * heads + h) * runs_of(m.stride);
    float most = -INFINITY, sum = 0;
    for (int i = lane; i < runs; i += 32) most = ptx::max_nan(most, own[i].x);
    for (int o = 16; o > 0; o /= 2) {
      most = ptx::max_nan(most, __shfl_xor_sync(0xFFFFFFFFu, most, o));
    }
    for (int i = lane; i < runs; i += 32) sum += own[i].y * exp2f(own[i].x - most);
    sum = warp_sum(sum);
    if (lane != 0) continue;
    tops[h] = make_float2(most, 1.0f / sum);
    if (m.to_log_sum != nullptr) m.to_log_sum[t * heads + h] = most + log2f(sum);
  }
  __syncthreads();
  const int written = min(m.stride, (n + kWide - 1) / kWide * kWide);
  for (int c = static_cast<int>(threadIdx.x) * 2; c < m.stride; c += kThreads * 2) {
    const float* s = m.s + token * heads * m.stride + c;
    uint16_t* p = m.p + token * heads * kParts * m.stride + c;
    float mean[2] = {};
    if (c < written) {
#pragma unroll 8
      for (int64_t h = 0; h < heads; ++h) {
        float2 x = make_float2(0, 0);
        const float2 top = tops[h];
        if (c < n) {
          x = *reinterpret_cast<const float2*>(s + h * m.stride);
          x.x = exp2f(x.x - top.x) * top.y;
          x.y = c + 1 < n ? exp2f(x.y - top.x) * top.y : 0;
        }
        mean[0] += x.x, mean[1] += x.y;
        if (m.p == nullptr) continue;
        uint16_t* to = p + h * kParts * m.stride;
        *reinterpret_cast<uint32_t*>(to) = ptx::pack_bf16(x.x, x.y);
        if constexpr (kParts == 2) {
          *reinterpret_cast<uint32_t*>(to + m.stride) =
              ptx::pack_bf16(low_part(x.x), low_part(x.y));
        }
      }
    }
    if (m.target == nullptr) continue;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (c + e < k) m.target[t * k + c + e] = mean[e] / static_cast<float>(heads);
    }
  }
}

// ---- products with P and dS

enum class Product : uint8_t { kOut, kQueries, kRows };

template <int kParts, Product kOf>
struct ProductShared {
  static constexpr bool kRows = kOf == Product::kRows;
  static constexpr int kStep = 32, kStages = kParts == 1 ? 4 : 3;
  static constexpr int kCols = kParts == 1 ? 128 : 192;
  // Of a: heads by a step of rows, or a step of heads by rows.
  static constexpr int kA = kRows ? kStep : kWide, kACols = kRows ? kWide : kStep;
  uint16_t a[kStages][kParts * kA * (kACols + 8)];
  uint16_t b[kStages][kParts * kStep * (kCols + 8)];
};

// 128 heads by kCols columns of P V (kOut) or dQ = dS K (kQueries), over rows; or the gradients of
// 128 rows by kCols columns, dS^T Q + P^T dO, over heads.
template <int kParts, Product kOf, bool kAtomic>
__global__ void __launch_bounds__(kThreads, kParts == 1 ? 2 : 1) product_kernel(const Many m) {
  using Shared = ProductShared<kParts, kOf>;
  constexpr bool kRows = Shared::kRows;
  constexpr int kStep = Shared::kStep, kCols = Shared::kCols;
  constexpr int kWarpRows = 32, kAcross = kWarps / (kWide / kWarpRows);
  constexpr int kG = kWarpRows / 16, kJ = kCols / kAcross / 16;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const int64_t t = m.first + blockIdx.z, latent = m.a.kv_lora;
  const int heads = static_cast<int>(m.a.heads);
  const int m0 = static_cast<int>(blockIdx.y) * kWide;
  const int32_t* set = m.a.indices + t * m.a.k;
  const int n = m.counts[t], k = static_cast<int>(m.a.k);
  if (kRows && m0 >= n) return;
  const int64_t scores = int64_t{blockIdx.z} * heads * kParts * m.stride;
  const Matrix p{m.p + scores, int64_t{kParts} * m.stride, m.stride};
  const Matrix ds{m.ds + scores, int64_t{kParts} * m.stride, m.stride};
  const Matrix q{m.q + int64_t{blockIdx.z} * heads * kParts * m.width, int64_t{kParts} * m.width,
                 m.width};
  const Matrix d_o{m.d_o + int64_t{blockIdx.z} * heads * kParts * m.latent,
                   int64_t{kParts} * m.latent, m.latent};
  const Matrix rows{m.rows, int64_t{kParts} * m.width, m.width};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int own_m = warp / kAcross * kWarpRows, own_n = warp % kAcross * (kCols / kAcross);
  const auto tile_a = [](uint16_t* x) { return tile_of<kParts>(x, Shared::kA, Shared::kACols); };
  const auto tile_b = [](uint16_t* x) { return tile_of<kParts>(x, kStep, kCols); };
  const int of_heads = (heads + kStep - 1) / kStep, of_rows = (n + kStep - 1) / kStep;
  // The columns [n0, n0 + kCols) and the step of their sum that is next: of rows all columns in
  // turn.
  struct Walk {
    int n0, step = 0;
  };
  Walk loads{static_cast<int>(blockIdx.x) * kCols}, uses = loads;
  const auto steps = [&](int n0) {
    return !kRows ? of_rows : n0 < m.latent ? 2 * of_heads : of_heads;
  };
  const auto advance = [&](Walk& walk) {
    if (++walk.step == steps(walk.n0)) walk = {walk.n0 + kCols};
  };
  int count = steps(loads.n0);
  for (int n0 = kCols; kRows && n0 < m.width; n0 += kCols) count += steps(n0);
  RowNumbers<Shared::kA, Shared::kACols> of_a;
  RowNumbers<kStep, kCols> of_b;
  if constexpr (!kRows) {
    of_a.plain(m0, heads);
    of_b.gathered(set, 0, k);
  }
  float sum[kG][kJ][2][4] = {};
  const auto store = [&](int n0) {
#pragma unroll
    for (int g = 0; g < kG; ++g) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = m0 + own_m + g * 16 + r * 8 + lane / 4;
        if (row >= (kRows ? n : heads)) continue;
        float *first, *second = nullptr;  // where columns of the latent part and of the other go
        if constexpr (kRows && kAtomic) {
          first = m.a.dc_kv + set[row] * latent;
          second = m.a.dk_pe + set[row] * m.a.rope;
        } else if constexpr (kRows) {
          first = m.row_gradients + (blockIdx.z * m.a.k + row) * (latent + m.a.rope);
          second = first + latent;
        } else if constexpr (kOf == Product::kOut) {
          first = m.out + (t * heads + row) * latent;
        } else {
          first = m.a.dq_latent + (t * heads + row) * latent;
          second = m.a.dq_pe + (t * heads + row) * m.a.q_pe_stride;
        }
#pragma unroll
        for (int j = 0; j < 2 * kJ; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int c = n0 + own_n + j * 8 + lane % 4 * 2 + e;
            if (c >= latent && (c < m.latent || c - m.latent >= m.a.rope)) continue;
            if (kOf == Product::kOut && c >= latent) continue;
            float* to = c < latent ? first + c : second + (c - m.latent);
            const float value = sum[g][j / 2][j % 2][2 * r + e];
            if constexpr (kAtomic) {
              atomicAdd(to, value);
            } else {
              *to = value;
            }
          }
        }
      }
    }
  };
  pipeline<Shared::kStages>(
      count,
      [&](int, int stage) {
        const Tile a = tile_a(shared.a[stage]), b = tile_b(shared.b[stage]);
        if constexpr (kRows) {
          const bool second = loads.step >= of_heads;
          const int h = (second ? loads.step - of_heads : loads.step) * kStep;
          of_a.plain(h, heads);
          of_b.plain(h, heads);
          const Matrix of_scores{second ? p.x : ds.x, p.row, p.part};
          const Matrix of_queries{second ? d_o.x : q.x, second ? d_o.row : q.row,
                                  second ? d_o.part : q.part};
          copy<kParts, kStep, kWide>(a, of_scores, of_a.row, m0, m.stride);
          copy<kParts, kStep, kCols>(b, of_queries, of_b.row, loads.n0,
                                     second ? m.latent : m.width);
        } else {
          copy<kParts, kWide, kStep>(a, kOf == Product::kOut ? p : ds, of_a.row, loads.step * kStep,
                                     m.stride);
          copy<kParts, kStep, kCols>(b, rows, of_b.row, loads.n0, m.width);
          of_b.gathered(set, (loads.step + 1) * kStep, k);  // of the next call
        }
        advance(loads);
      },
      [&](int, int stage) {
        const Tile a = tile_a(shared.a[stage]), b = tile_b(shared.b[stage]);
#pragma unroll
        for (int c = 0; c < kStep; c += 16) {
          Factor<kParts> f[kG];
#pragma unroll
          for (int g = 0; g < kG; ++g) {
            f[g] = kRows ? left_trans<kParts>(a, c, own_m + g * 16)
                         : left<kParts>(a, own_m + g * 16, c);
          }
#pragma unroll
          for (int j = 0; j < kJ; ++j) {
            const Factor<kParts> r = right<kParts>(b, c, own_n + j * 16);
#pragma unroll
            for (int g = 0; g < kG; ++g) multiply<kParts>(sum[g][j], f[g], r);
          }
        }
        const int n0 = uses.n0;
        advance(uses);
        if (uses.step != 0) return;
        store(n0);
        if constexpr (kRows) {
#pragma unroll
          for (int i = 0; i < kG * kJ * 8; ++i) sum[i / 8 / kJ][i / 8 % kJ][i / 4 % 2][i % 4] = 0;
        }
      });
}

// ---- launches

unsigned tiles(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

template <int kParts>
void pack(KernelContext& context, const Pack& p) {
  pack_kernel<kParts>
      <<<tiles(p.rows * (p.width / 8), kThreads), kThreads, 0, stream_of(context)>>>(p);
  check_launch("mla_sparse (pack)");
}

// Rows that the tokens may have selected.
int64_t rows_of(const Args& a) { return a.first + a.tokens; }

template <int kParts>
void pack_rows(KernelContext& context, const Many& m, uint16_t* to) {
  const Args& a = m.a;
  pack<kParts>(context, {a.c_kv, a.k_pe, rows_of(a), a.kv_lora, a.rope, static_cast<int>(a.kv_lora),
                         m.latent, static_cast<int>(a.rope), m.width, to});
}
template <int kParts>
void pack_queries(KernelContext& context, const Many& m, int64_t first, int64_t tokens,
                  uint16_t* to) {
  const Args& a = m.a;
  const int64_t row = first * a.heads;
  pack<kParts>(context, {a.q_latent + row * a.kv_lora, a.q_pe + row * a.q_pe_stride,
                         tokens * a.heads, a.kv_lora, a.q_pe_stride, static_cast<int>(a.kv_lora),
                         m.latent, static_cast<int>(a.rope), m.width, to});
}

Many sizes_of(const Args& a) {
  Many m{};
  m.a = a;
  m.latent = padded(a.kv_lora);
  m.width = m.latent + padded(a.rope);
  m.stride = padded(a.k);
  return m;
}

void start(KernelContext& context, void (*kernel)(Many), const Many& m, dim3 grid, size_t bytes,
           const char* name) {
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), name);
  kernel<<<grid, kThreads, bytes, stream_of(context)>>>(m);
  check_launch(name);
}

template <int kParts, Product kOf, bool kAtomic = false>
void start_product(KernelContext& context, const Many& m, int64_t columns, int64_t rows,
                   unsigned tokens, const char* name) {
  using Shared = ProductShared<kParts, kOf>;
  const unsigned across = kOf == Product::kRows ? 1 : tiles(columns, Shared::kCols);
  start(context, product_kernel<kParts, kOf, kAtomic>, m, {across, tiles(rows, kWide), tokens},
        sizeof(Shared), name);
}

// Tokens whose scratch memory of `token` bytes each takes about 1 GiB.
int64_t tokens_at_once(int64_t tokens, int64_t token) {
  return std::clamp<int64_t>((int64_t{1} << 30) / token, 1, std::min<int64_t>(tokens, 32768));
}

void count_entries(KernelContext& context, Many& m, int32_t* counts) {
  count_entries_kernel<<<tiles(m.a.tokens, kThreads), kThreads, 0, stream_of(context)>>>(
      m.a.indices, m.a.tokens, m.a.k, counts);
  check_launch("mla_sparse (counts)");
  m.counts = counts;
}

template <int kParts>
void forward(KernelContext& context, const MlaSparseTrainArgs& args) {
  Many m = sizes_of(args.in);
  const Args& a = m.a;
  m.out = args.out;
  m.to_log_sum = args.log_sum;
  m.target = args.target;
  const int64_t runs = runs_of(m.stride);
  const int64_t scores = a.heads * (m.stride * int64_t{4} + runs * 8);
  const int64_t packed = a.heads * kParts * 2 * int64_t{m.width};
  const int64_t p = m.out == nullptr ? 0 : a.heads * kParts * 2 * int64_t{m.stride};
  const int64_t size = tokens_at_once(a.tokens, scores + packed + p);
  const int64_t of_rows = rows_of(a) * kParts * int64_t{m.width};
  auto* rows = static_cast<uint16_t*>(
      device_scratch(context, kPackedSlot, of_rows * 2 + size * packed + a.tokens * 4));
  auto* q = rows + of_rows;
  count_entries(context, m, reinterpret_cast<int32_t*>(q + size * packed / 2));
  auto* memory = static_cast<std::byte*>(device_scratch(context, kRowsSlot, size * (scores + p)));
  // P first: its rows begin on 16 bytes, as every row of `stride` does.
  if (m.out != nullptr) m.p = reinterpret_cast<uint16_t*>(memory);
  m.s = reinterpret_cast<float*>(memory + size * p);
  m.runs = reinterpret_cast<float2*>(m.s + size * a.heads * m.stride);
  m.rows = rows, m.q = q;
  pack_rows<kParts>(context, m, rows);
  for (m.first = 0; m.first < a.tokens; m.first += size) {
    const auto count = static_cast<unsigned>(std::min(size, a.tokens - m.first));
    pack_queries<kParts>(context, m, m.first, count, q);
    start(context, scores_kernel<kParts, false>, m,
          {tiles(m.stride, kWide), tiles(a.heads, kWide), count},
          sizeof(ScoresShared<kParts, false>), "mla_sparse_train (scores)");
    // Room for an even number of heads: the compiler reads them by twos.
    start(context, softmax_kernel<kParts>, m, {count, 1, 1},
          static_cast<size_t>(a.heads + a.heads % 2) * sizeof(float2),
          "mla_sparse_train (softmax)");
    if (m.out == nullptr) continue;
    start_product<kParts, Product::kOut>(context, m, a.kv_lora, a.heads, count,
                                         "mla_sparse_train (values)");
  }
}

template <int kParts>
void backward(KernelContext& context, const Args& a, const float* out, const float* log_sum) {
  Many m = sizes_of(a);
  const int64_t pairs = a.tokens * a.heads, width = a.kv_lora + a.rope;
  const bool atomic = adds_atomically(context);
  const int64_t scores = a.heads * m.stride * int64_t{kParts};
  const int64_t queries = a.heads * kParts * int64_t{m.width},
                gradients = queries / m.width * m.latent;
  const int64_t size = tokens_at_once(
      a.tokens, scores * 4 + (queries + gradients) * 2 + (atomic ? 0 : a.k * width * 4));
  const int64_t of_rows = rows_of(a) * kParts * int64_t{m.width};
  const int64_t values = of_rows + size * (queries + gradients + 2 * scores);
  auto* packed = static_cast<uint16_t*>(
      device_scratch(context, kPackedSlot, values * 2 + (pairs + a.tokens) * 4));
  auto* delta = reinterpret_cast<float*>(packed + values);
  count_entries(context, m, reinterpret_cast<int32_t*>(delta + pairs));
  auto* q = packed + of_rows;
  auto* d_o = q + size * queries;
  m.p = d_o + size * gradients;
  m.ds = m.p + size * scores;
  m.rows = packed, m.q = q, m.d_o = d_o;
  m.log_sum = log_sum, m.delta = delta;
  pack_rows<kParts>(context, m, packed);
  delta_kernel<<<tiles(pairs, kWarps), kThreads, 0, stream_of(context)>>>(a.d_out, out, pairs,
                                                                          a.kv_lora, delta);
  check_launch("mla_sparse_backward (delta)");
  if (!atomic) {
    m.row_gradients =
        static_cast<float*>(device_scratch(context, kRowsSlot, size * a.k * width * int64_t{4}));
  }
  for (m.first = 0; m.first < a.tokens; m.first += size) {
    const auto count = static_cast<unsigned>(std::min(size, a.tokens - m.first));
    pack_queries<kParts>(context, m, m.first, count, q);
    pack<kParts>(context, {a.d_out + m.first * a.heads * a.kv_lora, nullptr, count * a.heads,
                           a.kv_lora, 0, static_cast<int>(a.kv_lora), m.latent, 0, m.latent, d_o});
    start(context, scores_kernel<kParts, true>, m,
          {tiles(m.stride, kWide), tiles(a.heads, kWide), count},
          sizeof(ScoresShared<kParts, true>), "mla_sparse_backward (scores)");
    start_product<kParts, Product::kQueries>(context, m, m.width, a.heads, count,
                                             "mla_sparse_backward (queries)");
    constexpr const char* kName = "mla_sparse_backward (rows)";
    if (atomic) {
      start_product<kParts, Product::kRows, true>(context, m, m.width, a.k, count, kName);
      continue;
    }
    start_product<kParts, Product::kRows>(context, m, m.width, a.k, count, kName);
    const int64_t first = a.first + m.first;
    scatter_rows(context, {a.indices + m.first * a.k, count, a.k, first + count, m.row_gradients,
                           width, a.kv_lora, a.dc_kv, a.dk_pe, a.sequences, first});
  }
}

}  // namespace

bool mla_sparse_many_supports(const Args& a) {
  constexpr size_t kBytes = std::max(
      {sizeof(ScoresShared<1, true>), sizeof(ScoresShared<2, true>), sizeof(ScoresShared<2, false>),
       sizeof(ProductShared<1, Product::kRows>), sizeof(ProductShared<1, Product::kOut>),
       sizeof(ProductShared<2, Product::kRows>), sizeof(ProductShared<2, Product::kOut>)});
  // The softmax has 8 bytes a head.
  return kBytes <= static_cast<size_t>(most_shared()) && a.heads <= 4096;
}

void mla_sparse_train_many(KernelContext& context, const MlaSparseTrainArgs& args) {
  if (args.in.tokens == 0) return;
  exact(context) ? forward<2>(context, args) : forward<1>(context, args);
}

void mla_sparse_target_many(KernelContext& context, const MlaSparseTargetArgs<float>& args) {
  mla_sparse_train_many(context, {args.in, nullptr, nullptr, args.p});
}

void mla_sparse_backward_many(KernelContext& context, const Args& a) {
  if (a.tokens == 0) return;
  context.device()->fill(a.dc_kv + a.first * a.kv_lora, 0, a.tokens * a.kv_lora * 4);
  context.device()->fill(a.dk_pe + a.first * a.rope, 0, a.tokens * a.rope * 4);
  const float *out = a.out, *log_sum = a.log_sum;
  if (out == nullptr || log_sum == nullptr) {
    // The slots are none of the forward pass, whichever it is for this many heads.
    const int64_t rows = a.tokens * a.heads;
    auto* o = static_cast<float*>(device_scratch(context, kOutSlot, rows * a.kv_lora * int64_t{4}));
    auto* l = static_cast<float*>(device_scratch(context, kLogSlot, rows * int64_t{4}));
    mla_sparse_train(context, {a, o, l, nullptr});
    out = o, log_sum = l;
  }
  exact(context) ? backward<2>(context, a, out, log_sum) : backward<1>(context, a, out, log_sum);
}

}  // namespace tamis
