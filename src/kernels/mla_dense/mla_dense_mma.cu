// mla_dense in native precision on the tensor cores: factors that are bf16 values, weights rounded
// to bf16, sums and softmax in float32 (FlashAttention, arXiv 2307.08691).
//
// A block takes 64 queries of one head, 16 a warp, and goes through the positions in tiles of 64
// from 0. For each query 64 bits say which of a tile's keys it attends to: those up to its
// position, and of them those selected (select_bits, one pass over the lists). A tile that no
// query of the block attends to is not read; one that a query has no part in leaves it as it is, so
// a row's bits depend on its own token alone. 0 times a value that is not finite would reach
// queries that do not see it: such values are read as 0, and who attends to their position gets
// NaN. Bound by the tensor cores: 2 (nope + rope + v_dim) flops a query, head and key.
#include <cuda_bf16.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla_dense/mla_dense_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 128, kBlock = 64;  // queries or keys of a block
constexpr int kBitsSlot = 0;                // of device_scratch
constexpr uint32_t kAll = 0xFFFFFFFFu;
constexpr float kLog2e = 1.4426950408889634F;

// Rows of kCols bf16 values; no two of 8 rows meet a bank.
template <int kCols>
struct Tile {
  static constexpr int kRow = kCols + 8;
  __nv_bfloat16 values[kBlock * kRow];
};

template <int kQk, int kV>
struct Shared {
  Tile<kQk> q, k;
  Tile<kV> v;
  uint32_t bad[2][2];  // keys of this tile and the last one whose values are not finite
};

__device__ inline uint32_t pack(float x, float y) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Columns [0, cols) of x, then [0, more_cols) of more, then zeros; `rows` of them are there.
struct Source {
  const float* x;
  int64_t stride;
  int cols;
  const float* more;
  int64_t more_stride;
  int more_cols, rows;

  __device__ bool quads() const {
    const auto at = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(more);
    return at % 16 == 0 && (stride | more_stride | cols | more_cols) % 4 == 0;
  }
  __device__ float4 quad(int row, int col, bool aligned) const {
    if (aligned) {
      if (col < cols) return *reinterpret_cast<const float4*>(x + row * stride + col);
      if (col >= cols + more_cols) return make_float4(0, 0, 0, 0);
      return *reinterpret_cast<const float4*>(more + row * more_stride + col - cols);
    }
    float v[4] = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int c = col + e;
      if (c < cols) {
        v[e] = x[row * stride + c];
      } else if (c < cols + more_cols) {
        v[e] = more[row * more_stride + c - cols];
      }
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

// With `bad`, values that are not finite become 0 and mark their row there.
template <int kCols>
__device__ inline void load_tile(const Source& s, Tile<kCols>& tile, uint32_t* bad) {
  const bool aligned = s.quads();
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kBlock * kCols / 4; i += kThreads) {
    const int row = i / (kCols / 4), col = i % (kCols / 4) * 4;
    float4 v = make_float4(0, 0, 0, 0);
    if (row < s.rows) v = s.quad(row, col, aligned);
    if (bad != nullptr && !(isfinite(v.x) && isfinite(v.y) && isfinite(v.z) && isfinite(v.w))) {
      atomicOr(&bad[row / 32], 1u << row % 32);
      v = make_float4(0, 0, 0, 0);
    }
    auto* to = reinterpret_cast<uint2*>(tile.values + row * Tile<kCols>::kRow + col);
    *to = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
  }
}

// s[16 rows of q from `row`, 64 keys] = q k^T.
template <int kQk>
__device__ inline void multiply_keys(const Tile<kQk>& q, int row, const Tile<kQk>& k,
                                     float (&s)[kBlock / 8][4]) {
  constexpr int kRow = Tile<kQk>::kRow;
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
#pragma unroll
  for (int c = 0; c < kQk; c += 16) {
    uint32_t a[4];
    ptx::ldmatrix_x4(a, q.values + (row + j % 2 * 8 + i) * kRow + c + j / 2 * 8);
#pragma unroll
    for (int n = 0; n < kBlock / 8; n += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, k.values + (n * 8 + j / 2 * 8 + i) * kRow + c + j % 2 * 8);
      mma_bf16(s[n], a, b[0], b[1]);
      mma_bf16(s[n + 1], a, b[2], b[3]);
    }
  }
}

// o += p v, p the weights of the warp's 16 queries.
template <int kV>
__device__ inline void multiply_values(const float (&p)[kBlock / 8][4], const Tile<kV>& v,
                                       float (&o)[kV / 8][4]) {
  constexpr int kRow = Tile<kV>::kRow;
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
#pragma unroll
  for (int t = 0; t < kBlock / 16; ++t) {
    const float(&x)[4] = p[2 * t];
    const float(&y)[4] = p[2 * t + 1];
    const uint32_t a[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])};
#pragma unroll
    for (int n = 0; n < kV / 8; n += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, v.values + (t * 16 + j % 2 * 8 + i) * kRow + n * 8 + j / 2 * 8);
      mma_bf16(o[n], a, b[0], b[1]);
      mma_bf16(o[n + 1], a, b[2], b[3]);
    }
  }
}

// bits [tokens, words]: of each token's list, a bit a position.
__global__ void __launch_bounds__(kThreads)
    select_bits(const MlaDenseArgs a, int64_t words, unsigned long long* bits) {
  unsigned long long* row = bits + blockIdx.x * words;
  for (int64_t i = threadIdx.x; i < words; i += kThreads) row[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.k; i += kThreads) {
    const int32_t at = a.indices[blockIdx.x * a.k + i];
    if (at >= 0) atomicOr(&row[at / 64], 1ull << at % 64);
  }
}

struct Query {
  int visible = 0;                           // keys; 0: no such token
  const unsigned long long* bits = nullptr;  // of the selection; null: all

  __device__ Query(const MlaDenseArgs& a, int64_t t, int64_t words, const unsigned long long* all) {
    if (t >= a.tokens) return;
    visible = a.position[t] + 1;
    if (all != nullptr) bits = all + t * words;
  }
  __device__ uint64_t attended(int begin) const {
    const int left = visible - begin;
    if (left <= 0) return 0;
    const uint64_t seen = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    return bits == nullptr ? seen : seen & bits[begin / 64];
  }
};

template <int kQk, int kV>
__global__ void __launch_bounds__(kThreads, 3)
    mla_dense_mma(const MlaDenseArgs a, int64_t words, const unsigned long long* bits) {
  extern __shared__ __align__(16) unsigned char space[];
  auto& shared = *reinterpret_cast<Shared<kQk, kV>*>(space);
  const int64_t h = blockIdx.y, t0 = (int64_t{gridDim.x} - 1 - blockIdx.x) * kBlock;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int row = warp * 16 + lane / 4;
  const int64_t q_row = a.nope + a.rope, kv_row = a.nope + a.v_dim;
  const Query query[2] = {Query(a, t0 + row, words, bits), Query(a, t0 + row + 8, words, bits)};
  // Positions rise.
  const int64_t last = min(t0 + kBlock, a.tokens) - 1;
  const int most = a.position[last] + 1;
  const float scale = a.softmax_scale * kLog2e;
  load_tile(Source{a.q + (t0 * a.heads + h) * q_row, a.heads * q_row, static_cast<int>(q_row),
                   nullptr, 0, 0, static_cast<int>(last - t0) + 1},
            shared.q, nullptr);
  if (threadIdx.x < 4) shared.bad[threadIdx.x / 2][threadIdx.x % 2] = 0;
  float o[kV / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int turn = 0;
  for (int k0 = 0; k0 < most; k0 += kBlock) {
    const uint64_t mask[2] = {query[0].attended(k0), query[1].attended(k0)};
    // Also: the last tile is read.
    if (__syncthreads_or((mask[0] | mask[1]) != 0) == 0) continue;
    if (threadIdx.x < 2) shared.bad[turn ^ 1][threadIdx.x] = 0;
    const float* kv = a.kv + (k0 * a.heads + h) * kv_row;
    const int rows = most - k0;
    load_tile(Source{kv, a.heads * kv_row, static_cast<int>(a.nope), a.k_pe + k0 * a.rope, a.rope,
                     static_cast<int>(a.rope), rows},
              shared.k, nullptr);
    load_tile(Source{kv + a.nope, a.heads * kv_row, static_cast<int>(a.v_dim), nullptr, 0, 0, rows},
              shared.v, shared.bad[turn]);
    __syncthreads();
    float s[kBlock / 8][4] = {};
    multiply_keys(shared.q, warp * 16, shared.k, s);
    const uint64_t bad = shared.bad[turn][0] | uint64_t{shared.bad[turn][1]} << 32;
    turn ^= 1;
    float most_of[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < kBlock / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = n * 8 + lane % 4 * 2 + e % 2;
        s[n][e] = (mask[e / 2] >> key & 1) != 0 ? s[n][e] * scale : -INFINITY;
        most_of[e / 2] = fmaxf(most_of[e / 2], s[n][e]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most_of[r] = fmaxf(most_of[r], __shfl_xor_sync(kAll, most_of[r], 1));
      most_of[r] = fmaxf(most_of[r], __shfl_xor_sync(kAll, most_of[r], 2));
      const float keep = mask[r] == 0 ? 1.0F : exp2f(top[r] - most_of[r]);
      top[r] = most_of[r];
      sum[r] *= keep;
      if ((mask[r] & bad) != 0) sum[r] = NAN;
#pragma unroll
      for (auto& tile : o) {
        tile[2 * r] *= keep;
        tile[2 * r + 1] *= keep;
      }
    }
#pragma unroll
    for (auto& tile : s) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tile[e] = mask[e / 2] == 0 ? 0 : exp2f(tile[e] - top[e / 2]);
        sum[e / 2] += tile[e];
      }
    }
    multiply_values(s, shared.v, o);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kAll, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAll, sum[r], 2);
    const int64_t t = t0 + row + r * 8;
    if (t >= a.tokens) continue;
    float* to = a.out + (t * a.heads + h) * a.v_dim;
#pragma unroll
    for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = n * 8 + lane % 4 * 2 + e;
        if (c < a.v_dim) to[c] = o[n][2 * r + e] / sum[r];
      }
    }
  }
}

template <int kQk, int kV>
void launch(KernelContext& context, const MlaDenseArgs& a, int64_t words,
            const unsigned long long* bits) {
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<kQk, kV>));
  const auto kernel = mla_dense_mma<kQk, kV>;
  allow_shared(reinterpret_cast<const void*>(kernel), kBytes, "mla_dense (mma)");
  const dim3 grid(static_cast<unsigned>((a.tokens + kBlock - 1) / kBlock),
                  static_cast<unsigned>(a.heads));
  kernel<<<grid, kThreads, kBytes, stream_of(context)>>>(a, words, bits);
  check_launch("mla_dense (mma)");
}

}  // namespace

bool mla_dense_mma_supports(const MlaDenseArgs& a) {
  return a.round_bf16 && a.nope + a.rope <= 192 && a.v_dim <= 128 &&
         (a.indices == nullptr || a.positions > 0) &&
         sizeof(Shared<192, 128>) <= static_cast<size_t>(most_shared());
}

void mla_dense_mma_cuda(KernelContext& context, const MlaDenseArgs& a) {
  if (a.tokens == 0) return;
  const int64_t words = (a.positions + 63) / 64;
  unsigned long long* bits = nullptr;
  if (a.indices != nullptr) {
    bits = static_cast<unsigned long long*>(
        device_scratch(context, kBitsSlot, a.tokens * words * int64_t{sizeof(*bits)}));
    select_bits<<<static_cast<unsigned>(a.tokens), kThreads, 0, stream_of(context)>>>(a, words,
                                                                                      bits);
    check_launch("mla_dense (bits)");
  }
  if (a.nope + a.rope <= 64 && a.v_dim <= 64) return launch<64, 64>(context, a, words, bits);
  launch<192, 128>(context, a, words, bits);
}

}  // namespace tamis
