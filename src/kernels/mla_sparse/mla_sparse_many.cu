// The backward pass of mla_sparse on CUDA for more heads than mla_sparse_few.cu takes, by blocks of
// tokens. All factors are packed once as bf16 values (split_tiles.cuh); then, for each token,
//
//   scores_kernel  S = Q K^T and dP = dO V^T of 128 heads by 128 gathered rows, and from them, with
//                  the log sums and outputs of the forward pass, P and dS, packed as well
//   product_kernel dQ = dS K over gathered rows
//   product_kernel the gradients of the rows, dS^T Q + P^T dO, in float32
//
// and scatter_rows adds those in the order of the tokens. Tiles come to shared memory by
// asynchronous copies, kStages ahead. Sums in float32 in an order that depends on shapes alone.
// Bound by the tensor cores and by moving the gradients of rows through memory.
#include <algorithm>

#include "kernels/cuda/split_tiles.cuh"
#include "kernels/cuda/train_rows.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"

namespace tamis {
namespace {

using namespace split_tiles;  // this file is a body of that header

using Args = MlaSparseBackwardArgs<float>;

constexpr int kStep = 32;               // of a sum, in shared memory at once
constexpr int kWide = 128, kOut = 192;  // heads or rows of a tile; columns of one of product_kernel
constexpr int kPackedSlot = 0, kOutSlot = 1, kRowsSlot = 2, kLogSlot = 3;  // scatter_rows has 7

// Values of one matrix with rows of bf16: row i at x + i * row, its low parts `part` behind.
struct Matrix {
  const uint16_t* x;
  int64_t row, part;
};

struct Many {
  Args a;
  int latent, width, stride;       // padded to whole steps of 16: kv_lora, with rope, k
  const uint16_t *rows, *q, *d_o;  // [tokens][parts][width], [tokens][heads][parts][width, latent]
  uint16_t *p, *ds;                // [tokens of the block][heads][parts][stride]
  const float *log_sum, *delta;    // [tokens, heads]
  int64_t first;                   // token of the block's first
  float* row_gradients;            // [tokens of the block, k, kv_lora + rope]
};

// ---- packing

// to [rows][parts][width] <- columns [0, n) of x, then zeros to `second`, columns [0, more_n) of
// more, zeros.
struct Pack {
  const float *x, *more;
  int64_t rows, x_stride, more_stride;
  int n, second, more_n, width;
  uint16_t* to;
};

template <int kParts>
__global__ void __launch_bounds__(kThreads) pack_kernel(const Pack p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.rows * p.width) return;
  const int64_t r = i / p.width;
  const int c = static_cast<int>(i % p.width);
  float x = 0;
  if (c < p.n) x = p.x[r * p.x_stride + c];
  if (c >= p.second && c - p.second < p.more_n) x = p.more[r * p.more_stride + c - p.second];
  uint16_t* to = p.to + r * kParts * p.width + c;
  to[0] = bf16_of(x);
  if (kParts == 2) to[p.width] = bf16_of(low_part(x));
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

// ---- tiles

// Starts to copy rows [row0, row0 + kRows) and columns [col0, col0 + kCols) of a matrix to a tile;
// zeros past `rows` and `cols`. With `set`, row i is row set[i] of the matrix, and zeros where that
// is negative.
template <int kParts, int kRows, int kCols>
__device__ void copy(const Tile& to, const Matrix& m, const int32_t* set, int row0, int rows,
                     int col0, int cols) {
  constexpr int kPieces = kCols / 8;
  static_assert(kRows * kPieces % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int slot = static_cast<int>(threadIdx.x) + i * kThreads;
    const int r = slot / kPieces, c = slot % kPieces * 8;
    int64_t row = row0 + r < rows ? row0 + r : -1;
    if (set != nullptr && row >= 0) row = set[row];
    const bool there = row >= 0 && col0 + c < cols;
    const uint16_t* from = m.x + (there ? row * m.row + col0 + c : 0);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      ptx::cp_async_16(to.x + p * to.part + r * to.pitch + c, from + p * m.part, there);
    }
  }
}

template <int kStages, typename Load, typename Use>
__device__ void pipeline(int count, const Load& load, const Use& use) {
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

// ---- P and dS

template <int kParts>
struct ScoresShared {
  static constexpr int kStages = kParts == 1 ? 4 : 3;
  static constexpr int kTile = kParts * kWide * (kStep + 8);
  uint16_t q[kStages][kTile], d_o[kStages][kTile], rows[kStages][kTile];
};

template <int kParts>
__device__ inline Tile tile_of(uint16_t* x, int rows, int cols) {
  return {x, cols + 8, rows * (cols + 8)};
}

// A warp has 32 heads by 64 rows.
template <int kParts>
__global__ void __launch_bounds__(kThreads, 1) scores_kernel(const Many m) {
  using Shared = ScoresShared<kParts>;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const int64_t t = m.first + blockIdx.z, heads = m.a.heads;
  const int h0 = static_cast<int>(blockIdx.y) * kWide, k0 = static_cast<int>(blockIdx.x) * kWide;
  const int32_t* set = m.a.indices + t * m.a.k;
  const int n = entries(set, m.a.k), k = static_cast<int>(m.a.k);
  const Matrix q{m.q + t * heads * kParts * m.width, int64_t{kParts} * m.width, m.width};
  const Matrix d_o{m.d_o + t * heads * kParts * m.latent, int64_t{kParts} * m.latent, m.latent};
  const Matrix rows{m.rows, int64_t{kParts} * m.width, m.width};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int own_h = warp / 2 * 32, own_k = warp % 2 * 64;
  float s[2][4][2][4] = {}, dp[2][4][2][4] = {};
  const auto tile = [](uint16_t* x) { return tile_of<kParts>(x, kWide, kStep); };
  // A tile without entries has zeros alone.
  const int count = k0 < n ? (m.width + kStep - 1) / kStep : 0;
  pipeline<Shared::kStages>(
      count,
      [&](int i, int stage) {
        const int c = i * kStep;
        const int all = static_cast<int>(heads);
        copy<kParts, kWide, kStep>(tile(shared.rows[stage]), rows, set, k0, k, c, m.width);
        copy<kParts, kWide, kStep>(tile(shared.q[stage]), q, nullptr, h0, all, c, m.width);
        if (c < m.latent) {
          copy<kParts, kWide, kStep>(tile(shared.d_o[stage]), d_o, nullptr, h0, all, c, m.latent);
        }
      },
      [&](int i, int stage) {
#pragma unroll
        for (int c = 0; c < kStep; c += 16) {
          const bool values = i * kStep + c < m.latent;
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
          if (!values) continue;
#pragma unroll
          for (int g = 0; g < 2; ++g) {
            const Factor<kParts> a = left<kParts>(tile(shared.d_o[stage]), own_h + g * 16, c);
#pragma unroll
            for (int j = 0; j < 4; ++j) multiply<kParts>(dp[g][j], a, b[j]);
          }
        }
      });
  const float scale = m.a.softmax_scale * kLog2e;
#pragma unroll
  for (int g = 0; g < 2; ++g) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int h = h0 + own_h + g * 16 + r * 8 + lane / 4;
      if (h >= heads) continue;
      const float log_sum = m.log_sum[t * heads + h], delta = m.delta[t * heads + h];
      const int64_t at = (blockIdx.z * heads + h) * kParts * m.stride;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int c = k0 + own_k + j * 8 + lane % 4 * 2;
        if (c >= m.stride) continue;
        float p[2], ds[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          p[e] = c + e < n ? exp2f(scale * s[g][j / 2][j % 2][2 * r + e] - log_sum) : 0;
          ds[e] = m.a.softmax_scale * p[e] * (dp[g][j / 2][j % 2][2 * r + e] - delta);
        }
        *reinterpret_cast<uint32_t*>(m.p + at + c) = ptx::pack_bf16(p[0], p[1]);
        *reinterpret_cast<uint32_t*>(m.ds + at + c) = ptx::pack_bf16(ds[0], ds[1]);
        if constexpr (kParts == 2) {
          *reinterpret_cast<uint32_t*>(m.p + at + m.stride + c) =
              ptx::pack_bf16(low_part(p[0]), low_part(p[1]));
          *reinterpret_cast<uint32_t*>(m.ds + at + m.stride + c) =
              ptx::pack_bf16(low_part(ds[0]), low_part(ds[1]));
        }
      }
    }
  }
}

// ---- products with P and dS

template <int kParts, bool kRows>
struct ProductShared {
  static constexpr int kStages = kParts == 1 ? 4 : 3;
  // Of a: heads by a step of rows, or a step of heads by rows.
  static constexpr int kA = kRows ? kStep : kWide, kACols = kRows ? kWide : kStep;
  uint16_t a[kStages][kParts * kA * (kACols + 8)];
  uint16_t b[kStages][kParts * kStep * (kOut + 8)];
};

// kRows: gradients of 128 rows by 192 columns, dS^T Q + P^T dO over heads; else dQ of 128 heads by
// 192 columns, dS K over rows. A warp has 32 by 96.
template <int kParts, bool kRows, bool kAtomic>
__global__ void __launch_bounds__(kThreads, 1) product_kernel(const Many m) {
  using Shared = ProductShared<kParts, kRows>;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const int64_t t = m.first + blockIdx.z, latent = m.a.kv_lora;
  const int heads = static_cast<int>(m.a.heads);
  const int m0 = static_cast<int>(blockIdx.y) * kWide, n0 = static_cast<int>(blockIdx.x) * kOut;
  const int32_t* set = m.a.indices + t * m.a.k;
  const int n = entries(set, m.a.k);
  if (kRows && m0 >= n) return;
  const int64_t scores = int64_t{blockIdx.z} * heads * kParts * m.stride;
  const Matrix p{m.p + scores, int64_t{kParts} * m.stride, m.stride};
  const Matrix ds{m.ds + scores, int64_t{kParts} * m.stride, m.stride};
  const Matrix q{m.q + t * heads * kParts * m.width, int64_t{kParts} * m.width, m.width};
  const Matrix d_o{m.d_o + t * heads * kParts * m.latent, int64_t{kParts} * m.latent, m.latent};
  const Matrix rows{m.rows, int64_t{kParts} * m.width, m.width};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int own_m = warp / 2 * 32, own_n = warp % 2 * 96;
  const auto tile_a = [](uint16_t* x) { return tile_of<kParts>(x, Shared::kA, Shared::kACols); };
  const auto tile_b = [](uint16_t* x) { return tile_of<kParts>(x, kStep, kOut); };
  const int of_heads = (heads + kStep - 1) / kStep, of_rows = (n + kStep - 1) / kStep;
  const int count = !kRows ? of_rows : n0 < m.latent ? 2 * of_heads : of_heads;
  float sum[2][6][2][4] = {};
  pipeline<Shared::kStages>(
      count,
      [&](int i, int stage) {
        if constexpr (kRows) {
          const bool second = i >= of_heads;
          const int h = (second ? i - of_heads : i) * kStep;
          copy<kParts, kStep, kWide>(tile_a(shared.a[stage]), second ? p : ds, nullptr, h, heads,
                                     m0, m.stride);
          copy<kParts, kStep, kOut>(tile_b(shared.b[stage]), second ? d_o : q, nullptr, h, heads,
                                    n0, second ? m.latent : m.width);
        } else {
          const int r = i * kStep;
          copy<kParts, kWide, kStep>(tile_a(shared.a[stage]), ds, nullptr, m0, heads, r, m.stride);
          copy<kParts, kStep, kOut>(tile_b(shared.b[stage]), rows, set, r, static_cast<int>(m.a.k),
                                    n0, m.width);
        }
      },
      [&](int, int stage) {
        const Tile a = tile_a(shared.a[stage]), b = tile_b(shared.b[stage]);
#pragma unroll
        for (int c = 0; c < kStep; c += 16) {
          Factor<kParts> f[2];
#pragma unroll
          for (int g = 0; g < 2; ++g) {
            f[g] = kRows ? left_trans<kParts>(a, c, own_m + g * 16)
                         : left<kParts>(a, own_m + g * 16, c);
          }
#pragma unroll
          for (int j = 0; j < 6; ++j) {
            const Factor<kParts> r = right<kParts>(b, c, own_n + j * 16);
#pragma unroll
            for (int g = 0; g < 2; ++g) multiply<kParts>(sum[g][j], f[g], r);
          }
        }
      });
#pragma unroll
  for (int g = 0; g < 2; ++g) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = m0 + own_m + g * 16 + r * 8 + lane / 4;
      if (row >= (kRows ? n : heads)) continue;
      float *first, *second;  // where columns of the latent part and of the other go
      if constexpr (kRows && kAtomic) {
        first = m.a.dc_kv + set[row] * latent;
        second = m.a.dk_pe + set[row] * m.a.rope;
      } else if constexpr (kRows) {
        first = m.row_gradients + (blockIdx.z * m.a.k + row) * (latent + m.a.rope);
        second = first + latent;
      } else {
        first = m.a.dq_latent + (t * heads + row) * latent;
        second = m.a.dq_pe + (t * heads + row) * m.a.q_pe_stride;
      }
#pragma unroll
      for (int j = 0; j < 12; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = n0 + own_n + j * 8 + lane % 4 * 2 + e;
          float* to = c < latent ? first + c : second + (c - m.latent);
          if (c >= latent && (c < m.latent || c - m.latent >= m.a.rope)) continue;
          if constexpr (kAtomic) {
            atomicAdd(to, sum[g][j / 2][j % 2][2 * r + e]);
          } else {
            *to = sum[g][j / 2][j % 2][2 * r + e];
          }
        }
      }
    }
  }
}

// ---- launches

template <int kParts>
void pack(KernelContext& context, const Pack& p) {
  const int64_t values = p.rows * p.width;
  pack_kernel<kParts><<<static_cast<unsigned>((values + kThreads - 1) / kThreads), kThreads, 0,
                        stream_of(context)>>>(p);
  check_launch("mla_sparse (pack)");
}

void start(KernelContext& context, void (*kernel)(Many), const Many& m, dim3 grid, size_t bytes,
           const char* name) {
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(bytes), name);
  kernel<<<grid, kThreads, bytes, stream_of(context)>>>(m);
  check_launch(name);
}

unsigned tiles(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

template <int kParts>
void run(KernelContext& context, const Args& a, const float* out, const float* log_sum) {
  Many m{};
  m.a = a;
  m.latent = padded(a.kv_lora);
  m.width = m.latent + padded(a.rope);
  m.stride = padded(a.k);
  const int64_t pairs = a.tokens * a.heads, width = a.kv_lora + a.rope;
  const bool atomic = adds_atomically(context);
  // Tokens of a block: P and dS, and the gradients of rows, take about 1 GiB.
  const int64_t token = a.heads * m.stride * kParts * 4 + (atomic ? 0 : a.k * width * 4);
  const int64_t size =
      std::clamp<int64_t>((int64_t{1} << 30) / token, 1, std::min<int64_t>(a.tokens, 32768));
  const int64_t values =
      kParts * (a.tokens * m.width + pairs * (m.width + m.latent) + 2 * size * a.heads * m.stride);
  auto* packed =
      static_cast<uint16_t*>(device_scratch(context, kPackedSlot, values * 2 + pairs * 4));
  auto* delta = reinterpret_cast<float*>(packed + values);
  auto* q = packed + kParts * a.tokens * m.width;
  auto* d_o = q + kParts * pairs * m.width;
  m.p = d_o + kParts * pairs * m.latent;
  m.ds = m.p + kParts * size * a.heads * m.stride;
  m.rows = packed, m.q = q, m.d_o = d_o;
  m.log_sum = log_sum, m.delta = delta;
  const auto latent = static_cast<int>(a.kv_lora), rope = static_cast<int>(a.rope);
  pack<kParts>(context, {a.c_kv, a.k_pe, a.tokens, a.kv_lora, a.rope, latent, m.latent, rope,
                         m.width, packed});
  pack<kParts>(context, {a.q_latent, a.q_pe, pairs, a.kv_lora, a.q_pe_stride, latent, m.latent,
                         rope, m.width, q});
  pack<kParts>(context,
               {a.d_out, nullptr, pairs, a.kv_lora, 0, latent, m.latent, 0, m.latent, d_o});
  delta_kernel<<<tiles(pairs, kWarps), kThreads, 0, stream_of(context)>>>(a.d_out, out, pairs,
                                                                          a.kv_lora, delta);
  check_launch("mla_sparse_backward (delta)");
  if (!atomic) {
    m.row_gradients =
        static_cast<float*>(device_scratch(context, kRowsSlot, size * a.k * width * int64_t{4}));
  }
  for (m.first = 0; m.first < a.tokens; m.first += size) {
    const int64_t count = std::min(size, a.tokens - m.first);
    const auto z = static_cast<unsigned>(count);
    start(context, scores_kernel<kParts>, m, {tiles(m.stride, kWide), tiles(a.heads, kWide), z},
          sizeof(ScoresShared<kParts>), "mla_sparse_backward (scores)");
    start(context, product_kernel<kParts, false, false>, m,
          {tiles(m.width, kOut), tiles(a.heads, kWide), z}, sizeof(ProductShared<kParts, false>),
          "mla_sparse_backward (queries)");
    start(context,
          atomic ? product_kernel<kParts, true, true> : product_kernel<kParts, true, false>, m,
          {tiles(m.width, kOut), tiles(a.k, kWide), z}, sizeof(ProductShared<kParts, true>),
          "mla_sparse_backward (rows)");
    if (atomic) continue;
    scatter_rows(context, {a.indices + m.first * a.k, count, a.k, m.first + count, m.row_gradients,
                           width, a.kv_lora, a.dc_kv, a.dk_pe, a.sequences, m.first});
  }
}

}  // namespace

bool mla_sparse_many_supports(const Args&) {
  constexpr size_t kBytes = std::max(
      {sizeof(ScoresShared<2>), sizeof(ProductShared<2, false>), sizeof(ProductShared<2, true>)});
  return kBytes <= static_cast<size_t>(most_shared());
}

void mla_sparse_backward_many(KernelContext& context, const Args& a) {
  if (a.tokens == 0) return;
  context.device()->fill(a.dc_kv, 0, a.tokens * a.kv_lora * 4);
  context.device()->fill(a.dk_pe, 0, a.tokens * a.rope * 4);
  const float *out = a.out, *log_sum = a.log_sum;
  if (out == nullptr || log_sum == nullptr) {
    // The slots are none of the forward pass.
    const int64_t rows = a.tokens * a.heads;
    auto* o = static_cast<float*>(device_scratch(context, kOutSlot, rows * a.kv_lora * int64_t{4}));
    auto* l = static_cast<float*>(device_scratch(context, kLogSlot, rows * int64_t{4}));
    mla_sparse_train_cuda(context, {a, o, l, nullptr});
    out = o, log_sum = l;
  }
  exact(context) ? run<2>(context, a, out, log_sum) : run<1>(context, a, out, log_sum);
}

}  // namespace tamis
