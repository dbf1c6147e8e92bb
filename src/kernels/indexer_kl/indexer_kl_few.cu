// indexer_kl_sparse on CUDA for up to 16 heads of up to 128 values: a block takes one token, whose
// keys come 32 at a time as bf16 values taken apart once (split_tiles.cuh). The products q_j . k[s]
// stay in shared memory, the softmax and KL of the token in double, then dq of the token in
// registers and the gradients of its keys [k, dim] to memory, from where scatter_rows adds them in
// the order of the tokens.
#include "kernels/cuda/split_tiles.cuh"
#include "kernels/cuda/train_rows.h"
#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/indexer_kl/indexer_kl_tokens.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace split_tiles;  // this file is a body of that header

using Args = IndexerKlSparseArgs<float>;

constexpr int kPackedSlot = 0, kRowsSlot = 2;  // of scratch memory; scatter_rows has 7

struct Few {
  Args a;
  Gathered gathered;               // of the keys
  int64_t first = 0;               // token of block 0
  float* row_gradients = nullptr;  // [tokens from first, k, dim]
};

template <int kParts>
__global__ void __launch_bounds__(kThreads) pack_keys(const Few f, uint16_t* to) {
  const int width = f.gathered.width;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, t = i / width;
  if (t >= f.a.indexer.tokens) return;
  const int c = static_cast<int>(i % width);
  const float x = c < f.a.indexer.dim ? f.a.indexer.k[t * f.a.indexer.dim + c] : 0;
  uint16_t* row = to + t * kParts * width + c;
  row[0] = bf16_of(x);
  if (kParts == 2) row[width] = bf16_of(low_part(x));
}

template <int kParts, bool kAtomic>
__global__ void __launch_bounds__(kThreads) kl_kernel(const Few f) {
  extern __shared__ __align__(16) unsigned char bytes[];
  Space space{bytes};
  const int width = f.gathered.width;
  const Tile q = space.tile(kHeads, width, kParts);
  const Tile tile0 = space.tile(kTile, width, kParts);
  const Tile tile1 = f.gathered.stages == 2 ? space.tile(kTile, width, kParts) : tile0;
  const Tile tiles[2] = {tile0, tile1};
  const Tile g = space.tile(kHeads, kTile, kParts);
  const int pitch = (static_cast<int>(f.a.count) + kTile - 1) / kTile * kTile + 1;
  float* product = space.floats(kHeads * pitch);
  float* part = space.floats(kHeads * (kTile + 1));
  float* score = space.floats(pitch);
  float* w = space.floats(kHeads);

  const IndexerSequence<float>& x = f.a.indexer;
  const int64_t t = f.first + blockIdx.x, k = f.a.count;
  const int32_t* set = f.a.indices + t * k;
  const float* p = f.a.p + t * k;
  const int n = entries(set, k), heads = static_cast<int>(x.heads);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  load_heads<kParts>(q, 0, x.q + t * heads * x.dim, x.dim, heads, x.dim, width);
  if (threadIdx.x < kHeads) w[threadIdx.x] = threadIdx.x < heads ? x.w[t * heads + threadIdx.x] : 0;
  const int half = width / 32 * 16;
  over_tiles<kParts>(f.gathered, set, n, tiles, [&](int base, const Tile& rows) {
    float d[4];
    const int key = warp % 4 * 8;
    scores<kParts>(q, rows, key, warp < 4 ? 0 : half, warp < 4 ? half : width, d);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int h = lane / 4 + e / 2 * 8, c = key + lane % 4 * 2 + e % 2;
      if (warp >= 4) part[h * (kTile + 1) + c] = d[e];
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int h = lane / 4 + e / 2 * 8, c = key + lane % 4 * 2 + e % 2;
      if (warp < 4) product[h * pitch + base + c] = d[e] + part[h * (kTile + 1) + c];
    }
  });

  float top = -INFINITY;
  for (int s = static_cast<int>(threadIdx.x); s < n; s += kThreads) {
    float sum = 0;
    for (int j = 0; j < heads; ++j) {
      const float a = product[j * pitch + s];
      sum = fmaf(w[j], a < 0 ? 0.0f : a, sum);  // NaN stays
    }
    score[s] = sum;
    top = ptx::max_nan(top, sum);
  }
  top = block_max<kThreads>(top);
  double sum = 0;
  for (int s = static_cast<int>(threadIdx.x); s < n; s += kThreads) {
    sum += exp(static_cast<double>(score[s]) - top);
  }
  const double lse = top + log(block_sum<kThreads>(sum));
  double kl = 0;
  for (int s = static_cast<int>(threadIdx.x); s < n; s += kThreads) {
    const double log_q = score[s] - lse, target = p[s];
    if (target > 0) kl += target * (log(target) - log_q);
    score[s] = static_cast<float>(x.scale * (exp(log_q) - target));
  }
  kl = block_sum<kThreads>(kl);  // every score is written
  if (threadIdx.x == 0) x.kl[t] = kl;
  for (int j = warp; j < heads; j += kWarps) {
    float dw = 0;
    for (int s = lane; s < n; s += 32) {
      const float a = product[j * pitch + s];
      if (a > 0) dw = fmaf(score[s], a, dw);
    }
    dw = warp_sum(dw);
    if (lane == 0) x.dw[t * heads + j] = dw;
  }

  float dq[2][4] = {};
  const int mine = warp * 16;  // columns of dq
  over_tiles<kParts>(f.gathered, set, n, tiles, [&](int base, const Tile& rows) {
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * kTile; i += kThreads) {
      const int h = i / kTile, c = i % kTile;
      const bool there = base + c < n && product[h * pitch + base + c] > 0;
      put<kParts>(g, h, c, there ? score[base + c] * w[h] : 0.0f);
    }
    __syncthreads();
    if (mine < width) {
#pragma unroll
      for (int step = 0; step < kTile; step += 16) {
        multiply<kParts>(dq, left<kParts>(g, 0, step), right<kParts>(rows, step, mine));
      }
    }
    const int columns = width / 16;
    for (int i = warp; i < kTile / 16 * columns; i += kWarps) {
      const int m = i / columns * 16, col = i % columns * 16;
      float d_row[2][4] = {};
      multiply<kParts>(d_row, left_trans<kParts>(g, 0, m), right<kParts>(q, 0, col));
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int s = base + m + lane / 4 + e % 4 / 2 * 8;
        const int c = col + e / 4 * 8 + lane % 4 * 2 + e % 2;
        if (s >= n || c >= x.dim) continue;
        if constexpr (kAtomic) {
          atomicAdd(x.dk + set[s] * x.dim + c, d_row[e / 4][e % 4]);
        } else {
          f.row_gradients[(int64_t{blockIdx.x} * k + s) * x.dim + c] = d_row[e / 4][e % 4];
        }
      }
    }
  });
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int h = lane / 4 + e % 4 / 2 * 8, c = mine + e / 4 * 8 + lane % 4 * 2 + e % 2;
    if (h < heads && c < x.dim) x.dq[(t * heads + h) * x.dim + c] = dq[e / 4][e % 4];
  }
}

int shared_bytes(const Few& f, int parts) {
  constexpr int kSpare = 64;  // what the last step of scores may read past a tile
  const int width = f.gathered.width;
  const int k = (static_cast<int>(f.a.count) + kTile - 1) / kTile * kTile + 1;
  return tile_bytes(kHeads, width, parts) + f.gathered.stages * tile_bytes(kTile, width, parts) +
         tile_bytes(kHeads, kTile, parts) + ((kHeads + 1) * k + kHeads * (kTile + 2) + 16) * 4 +
         kSpare;
}

Few sizes_of(const Args& a) {
  Few f;
  f.a = a;
  f.gathered.k = a.count;
  f.gathered.width = padded(a.indexer.dim);
  return f;
}

template <int kParts>
void run(KernelContext& context, const Args& a) {
  Few f = sizes_of(a);
  const IndexerSequence<float>& x = a.indexer;
  const int64_t values = x.tokens * f.gathered.width;
  auto* rows = static_cast<uint16_t*>(device_scratch(context, kPackedSlot, values * kParts * 2));
  pack_keys<kParts><<<static_cast<unsigned>((values + kThreads - 1) / kThreads), kThreads, 0,
                      stream_of(context)>>>(f, rows);
  check_launch("indexer_kl_sparse (pack)");
  f.gathered.rows = rows;
  f.gathered.stages = 2;
  if (shared_bytes(f, kParts) > most_shared()) f.gathered.stages = 1;
  const int bytes = shared_bytes(f, kParts);
  const bool atomic = adds_atomically(context);
  kl_of_tokens(context, atomic ? kl_kernel<kParts, true> : kl_kernel<kParts, false>, f, kThreads,
               bytes, atomic, kRowsSlot, "indexer_kl_sparse (few heads)");
}

}  // namespace

bool indexer_kl_few_supports(const IndexerKlSparseArgs<float>& a) {
  const Few f = sizes_of(a);
  return a.indexer.heads <= kHeads && a.indexer.dim <= 16 * kWarps && a.count <= (1 << 14) &&
         shared_bytes(f, 2) <= most_shared();
}

void indexer_kl_sparse_few(KernelContext& context, const IndexerKlSparseArgs<float>& args) {
  if (args.indexer.tokens == 0) return;
  context.device()->fill(args.indexer.dk, 0, args.indexer.tokens * args.indexer.dim * 4);
  context.allowed("train_products", "cuda") ? run<2>(context, args) : run<1>(context, args);
}

}  // namespace tamis
