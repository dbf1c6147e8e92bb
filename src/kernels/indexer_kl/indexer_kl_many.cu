// indexer_kl_sparse on CUDA for up to 64 heads of up to 128 values: a block takes one token, whose
// keys come 64 at a time as bf16 values taken apart once (split_tiles.cuh). The products q_j . k[s]
// are made twice: for the scores of the token, whose softmax and KL are in double, and then for the
// gradients. dq of the token stays in registers; the gradients of its keys [k, dim] go to memory,
// from where scatter_rows adds them in the order of the tokens. Bound by shared memory.
#include "kernels/cuda/split_tiles.cuh"
#include "kernels/cuda/train_rows.h"
#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/indexer_kl/indexer_kl_tokens.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace split_tiles;  // this file is a body of that header

using Args = IndexerKlSparseArgs<float>;

constexpr int kMost = 64, kKeys = 64, kMostDim = 128;  // heads, keys of a tile
constexpr int kPackedSlot = 0, kRowsSlot = 2;          // of scratch memory; scatter_rows has 7

struct Many {
  Args a;
  const uint16_t* rows = nullptr;  // the keys, [tokens][parts][width]
  int width = 0;                   // of a packed row
  int64_t first = 0;               // token of block 0
  float* row_gradients = nullptr;  // [tokens from first, k, dim]
};

template <int kParts>
__global__ void __launch_bounds__(kThreads) kl_many_pack(const Many m, uint16_t* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, t = i / m.width;
  if (t >= m.a.indexer.tokens) return;
  const int c = static_cast<int>(i - t * m.width);
  const float x = c < m.a.indexer.dim ? m.a.indexer.k[t * m.a.indexer.dim + c] : 0;
  uint16_t* row = to + t * kParts * m.width + c;
  row[0] = bf16_of(x);
  if (kParts == 2) row[m.width] = bf16_of(low_part(x));
}

// Starts to copy the keys of entries [base, base + kKeys) of the token's set to a tile.
template <int kParts>
__device__ void gather(const Many& m, const int32_t* set, int base, const Tile& to) {
  const int pieces = m.width / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * pieces; i += kThreads) {
    const int r = i / pieces, c = i % pieces * 8;
    const int64_t row = base + r < m.a.count ? set[base + r] : -1;
    const uint16_t* from = m.rows + max(row, int64_t{0}) * kParts * m.width + c;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      ptx::cp_async_16(to.x + p * to.part + r * to.pitch + c, from + p * m.width, row >= 0);
    }
  }
  ptx::cp_async_commit();
}

// Calls use(base, tile) with every tile of keys in turn, the next one on its way. A barrier stands
// before each call and after it.
template <int kParts, typename Use>
__device__ void over_keys(const Many& m, const int32_t* set, int n, const Tile (&tiles)[2],
                          const Use& use) {
  const int count = (n + kKeys - 1) / kKeys;
  gather<kParts>(m, set, 0, tiles[0]);
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) {
      gather<kParts>(m, set, (i + 1) * kKeys, tiles[(i + 1) % 2]);
      ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();
    use(i * kKeys, tiles[i % 2]);
    __syncthreads();
  }
}

// What a thread has of the products of 16 heads and 32 keys: [j][half] 8 keys, as mma_bf16 has d.
using Products = float[2][2][4];

template <int kParts>
__device__ inline void products(const Tile& q, const Tile& keys, int width, int head, int key,
                                Products& s) {
#pragma unroll 4
  for (int c = 0; c < width; c += 16) {
    const Factor<kParts> a = left<kParts>(q, head, c);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      multiply<kParts>(s[j], a, right_rows<kParts>(keys, key + j * 16, c));
    }
  }
}

template <int kParts, bool kAtomic>
__global__ void __launch_bounds__(kThreads, kParts == 1 ? 2 : 1) kl_many_kernel(const Many m) {
  extern __shared__ __align__(16) unsigned char bytes[];
  Space space{bytes};
  const Tile q = space.tile(kMost, m.width, kParts);
  const Tile tile0 = space.tile(kKeys, m.width, kParts), tile1 = space.tile(kKeys, m.width, kParts);
  const Tile tiles[2] = {tile0, tile1};
  const Tile g = space.tile(kMost, kKeys, kParts);
  float* part = space.floats(kMost / 16 * kKeys);  // of scores, or of dw: [2][kMost]
  float* score = space.floats(static_cast<int>(m.a.count));
  float* w = space.floats(kMost);
  auto* set = reinterpret_cast<int32_t*>(space.floats(static_cast<int>(m.a.count)));

  const IndexerSequence<float>& x = m.a.indexer;
  const int64_t t = m.first + blockIdx.x, k = m.a.count;
  const float* p = m.a.p + t * k;
  const int n = entries(m.a.indices + t * k, k), heads = static_cast<int>(x.heads),
            dim = static_cast<int>(x.dim);
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < kMost * m.width; i += kThreads) {
    const int h = i / m.width, c = i % m.width;
    put<kParts>(q, h, c, h < heads && c < dim ? x.q[(t * heads + h) * dim + c] : 0.0f);
  }
  for (int h = thread; h < kMost; h += kThreads) w[h] = h < heads ? x.w[t * heads + h] : 0;
  // Copies of keys do not wait for reads of memory.
  for (int i = thread; i < k; i += kThreads) set[i] = m.a.indices[t * k + i];
  __syncthreads();

  const int own_h = warp / 2 * 16, own_k = warp % 2 * 32;  // of products
  const float own_w[2] = {w[own_h + lane / 4], w[own_h + lane / 4 + 8]};
  over_keys<kParts>(m, set, n, tiles, [&](int base, const Tile& keys) {
    Products s = {};
    products<kParts>(q, keys, m.width, own_h, own_k, s);
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // a key a turn: the sum over the warp's heads
      float sum = 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float a = s[j / 4][j / 2 % 2][2 * r + j % 2];
        sum = fmaf(own_w[r], a < 0 ? 0.0f : a, sum);  // NaN stays
      }
      for (int o = 4; o < 32; o *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
      if (lane < 4) part[own_h / 16 * kKeys + own_k + j / 2 * 8 + lane * 2 + j % 2] = sum;
    }
    __syncthreads();
    if (thread < kKeys && base + thread < n) {
      float sum = part[thread];
      for (int i = 1; i < kMost / 16; ++i) sum += part[i * kKeys + thread];
      score[base + thread] = sum;
    }
  });

  float top = -INFINITY;
  for (int s = thread; s < n; s += kThreads) top = ptx::max_nan(top, score[s]);
  top = block_max<kThreads>(top);
  double sum = 0;
  for (int s = thread; s < n; s += kThreads) sum += exp(static_cast<double>(score[s]) - top);
  const double lse = top + log(block_sum<kThreads>(sum));
  double kl = 0;
  for (int s = thread; s < n; s += kThreads) {
    const double log_q = score[s] - lse, target = p[s];
    if (target > 0) kl += target * (log(target) - log_q);
    score[s] = static_cast<float>(x.scale * (exp(log_q) - target));
  }
  kl = block_sum<kThreads>(kl);  // every score is written
  if (thread == 0) x.kl[t] = kl;

  float dw[2] = {}, dq[2][2][2][4] = {};
  const int own_m = warp / 4 * 32, own_d = warp % 4 * 32;  // heads or keys, columns of gradients
  over_keys<kParts>(m, set, n, tiles, [&](int base, const Tile& keys) {
    Products s = {};
    products<kParts>(q, keys, m.width, own_h, own_k, s);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = own_k + j * 8 + lane % 4 * 2;
      float d[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) d[e] = base + key + e < n ? score[base + key + e] : 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float of_product[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float a = s[j / 2][j % 2][2 * r + e];
          if (a > 0) dw[r] = fmaf(d[e], a, dw[r]);
          of_product[e] = a > 0 ? d[e] * own_w[r] : 0;
        }
        uint16_t* to = g.x + (own_h + lane / 4 + r * 8) * g.pitch + key;
        *reinterpret_cast<uint32_t*>(to) = ptx::pack_bf16(of_product[0], of_product[1]);
        if constexpr (kParts == 2) {
          *reinterpret_cast<uint32_t*>(to + g.part) =
              ptx::pack_bf16(low_part(of_product[0]), low_part(of_product[1]));
        }
      }
    }
    __syncthreads();
    float dk[2][2][2][4] = {};
#pragma unroll
    for (int c = 0; c < kKeys; c += 16) {
      Factor<kParts> of_heads[2], of_keys[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        of_heads[i] = left<kParts>(g, own_m + i * 16, c);
        of_keys[i] = left_trans<kParts>(g, c, own_m + i * 16);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int col = own_d + j * 16;
        if (col >= m.width) continue;
        const Factor<kParts> b = right<kParts>(keys, c, col), b_q = right<kParts>(q, c, col);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply<kParts>(dq[i][j], of_heads[i], b);
          multiply<kParts>(dk[i][j], of_keys[i], b_q);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int key = base + own_m + i * 16 + r * 8 + lane / 4;
        if (key >= n) continue;
        float* to = kAtomic ? x.dk + int64_t{set[key]} * dim
                            : m.row_gradients + (int64_t{blockIdx.x} * k + key) * dim;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int c = own_d + j / 2 * 8 + lane % 4 * 2 + j % 2;
          const float value = dk[i][j / 4][j / 2 % 2][2 * r + j % 2];
          if (c >= dim) continue;
          if constexpr (kAtomic) {
            atomicAdd(to + c, value);
          } else {
            to[c] = value;
          }
        }
      }
    }
  });
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    for (int o = 1; o < 4; o *= 2) dw[r] += __shfl_xor_sync(0xFFFFFFFFu, dw[r], o);
    if (lane % 4 == 0) part[own_k / 32 * kMost + own_h + lane / 4 + r * 8] = dw[r];
  }
  __syncthreads();
  for (int h = thread; h < heads; h += kThreads) x.dw[t * heads + h] = part[h] + part[kMost + h];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int h = own_m + i * 16 + r * 8 + lane / 4;
      if (h >= heads) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int c = own_d + j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (c < dim) x.dq[(t * heads + h) * dim + c] = dq[i][j / 4][j / 2 % 2][2 * r + j % 2];
      }
    }
  }
}

int shared_bytes(const Many& m, int parts) {
  return tile_bytes(kMost, m.width, parts) + 2 * tile_bytes(kKeys, m.width, parts) +
         tile_bytes(kMost, kKeys, parts) +
         (kMost / 16 * kKeys + 2 * ((static_cast<int>(m.a.count) + 3) / 4 * 4) + kMost) * 4;
}

Many sizes_of(const Args& a) {
  Many m;
  m.a = a;
  m.width = padded(a.indexer.dim);
  return m;
}

template <int kParts>
void run(KernelContext& context, const Args& a) {
  Many m = sizes_of(a);
  const IndexerSequence<float>& x = a.indexer;
  const int64_t values = x.tokens * m.width;
  auto* rows = static_cast<uint16_t*>(device_scratch(context, kPackedSlot, values * kParts * 2));
  kl_many_pack<kParts><<<static_cast<unsigned>((values + kThreads - 1) / kThreads), kThreads, 0,
                         stream_of(context)>>>(m, rows);
  check_launch("indexer_kl_sparse (pack)");
  m.rows = rows;
  const int bytes = shared_bytes(m, kParts);
  const bool atomic = adds_atomically(context);
  kl_of_tokens(context, atomic ? kl_many_kernel<kParts, true> : kl_many_kernel<kParts, false>, m,
               kThreads, bytes, atomic, kRowsSlot, "indexer_kl_sparse (many heads)");
}

}  // namespace

bool indexer_kl_many_supports(const Args& a) {
  return a.indexer.heads <= kMost && a.indexer.dim <= kMostDim && a.count <= (1 << 14) &&
         shared_bytes(sizes_of(a), 2) <= most_shared();
}

void indexer_kl_sparse_many(KernelContext& context, const Args& args) {
  if (args.indexer.tokens == 0) return;
  context.device()->fill(args.indexer.dk, 0, args.indexer.tokens * args.indexer.dim * 4);
  exact(context) ? run<2>(context, args) : run<1>(context, args);
}

}  // namespace tamis
