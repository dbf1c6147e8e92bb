// mla_sparse in training on CUDA for up to 16 heads: a block takes one token, gathers its rows 32
// at a time and keeps scores, probabilities and gradients of scores on chip.
//
// Every float32 factor is taken apart into two bf16 values and a product is high high + high low +
// low high, off by at most 3.01 * 2^-18 of it; with "matmul" or "train_products" forced to
// "cuda_bf16", the low parts are left out. c_kv and k_pe are taken apart once, before they are
// gathered. Sums in float32 in an order that depends on shapes alone.
//
// Forward: all scores of the token to shared memory, their softmax, its mean over heads (the
// indexer's target), and P c_kv over the rows once more. Backward: scores and d_out . c_kv by
// different warps, then dq of the token in registers and the gradients of its rows [k, width] to
// memory, from where scatter_rows adds them in the order of the tokens.
#include <algorithm>

#include "kernels/cuda/split_tiles.cuh"
#include "kernels/cuda/train_rows.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace split_tiles;  // this file is a body of that header

using Args = MlaSparseBackwardArgs<float>;

constexpr int kFloatPitch = kTile + 1;
constexpr int kPackedSlot = 0, kOutSlot = 1, kRowsSlot = 2, kLogSlot = 3;  // scatter_rows has 7

// Both parts of a row are padded with zeros to whole steps of 16.
struct Few {
  Args a;
  Gathered gathered;  // of c_kv, k_pe
  int latent = 0, width = 0;
  int64_t first = 0;                                            // token of block 0
  float *out = nullptr, *log_sum = nullptr, *target = nullptr;  // [tokens, ..]
  float* row_gradients = nullptr;                               // [tokens from first, k, ..]
};

template <int kParts>
__global__ void __launch_bounds__(kThreads) pack_kernel(const Few f, uint16_t* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= (f.a.first + f.a.tokens) * f.width) return;
  const int64_t t = i / f.width;
  const int c = static_cast<int>(i % f.width);
  float x = 0;
  if (c < f.a.kv_lora) x = f.a.c_kv[t * f.a.kv_lora + c];
  if (c >= f.latent && c - f.latent < f.a.rope) x = f.a.k_pe[t * f.a.rope + c - f.latent];
  uint16_t* row = to + t * kParts * f.width + c;
  row[0] = bf16_of(x);
  if (kParts == 2) row[f.width] = bf16_of(low_part(x));
}

// The column of a row without padding, or -1.
__device__ inline int column_of(const Few& f, int c) {
  if (c < f.latent) return c < f.a.kv_lora ? c : -1;
  return c - f.latent < f.a.rope ? static_cast<int>(f.a.kv_lora) + c - f.latent : -1;
}

template <int kParts, int kMine>
__global__ void __launch_bounds__(kThreads) few_forward(const Few f) {
  extern __shared__ __align__(16) unsigned char bytes[];
  Space space{bytes};
  const Tile q = space.tile(kHeads, f.width, kParts);
  const Tile tile0 = space.tile(kTile, f.width, kParts);
  const Tile tile1 = f.gathered.stages == 2 ? space.tile(kTile, f.width, kParts) : tile0;
  const Tile tiles[2] = {tile0, tile1};
  const Tile p = space.tile(kHeads, kTile, kParts);
  const int pitch = (static_cast<int>(f.a.k) + kTile - 1) / kTile * kTile + 1;
  float* s = space.floats(kHeads * pitch);
  float* part = space.floats(kHeads * kFloatPitch);
  float* top = space.floats(kHeads);
  float* factor = space.floats(kHeads);

  const int64_t t = f.first + blockIdx.x, heads = f.a.heads;
  const int32_t* set = f.a.indices + t * f.a.k;
  const int n = entries(set, f.a.k);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  load_heads<kParts>(q, 0, f.a.q_latent + t * heads * f.a.kv_lora, f.a.kv_lora, heads, f.a.kv_lora,
                     f.latent);
  load_heads<kParts>(q, f.latent, f.a.q_pe + t * heads * f.a.q_pe_stride, f.a.q_pe_stride, heads,
                     f.a.rope, f.width - f.latent);
  const float scale = f.a.softmax_scale * kLog2e;
  const int half = f.width / 32 * 16;
  over_tiles<kParts>(f.gathered, set, n, tiles, [&](int base, const Tile& rows) {
    float d[4];
    const int key = warp % 4 * 8;
    scores<kParts>(q, rows, key, warp < 4 ? 0 : half, warp < 4 ? half : f.width, d);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (warp >= 4) {
        part[(lane / 4 + e / 2 * 8) * kFloatPitch + key + lane % 4 * 2 + e % 2] = d[e];
      }
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int h = lane / 4 + e / 2 * 8, c = key + lane % 4 * 2 + e % 2;
      if (warp < 4) s[h * pitch + base + c] = scale * (d[e] + part[h * kFloatPitch + c]);
    }
  });
  for (int h = warp; h < kHeads; h += kWarps) {  // a warp for a head's softmax
    float most = -INFINITY, sum = 0;
    for (int i = lane; i < n; i += 32) most = ptx::max_nan(most, s[h * pitch + i]);
    for (int o = 16; o > 0; o /= 2) {
      most = ptx::max_nan(most, __shfl_xor_sync(0xFFFFFFFFu, most, o));
    }
    for (int i = lane; i < n; i += 32) {
      const float x = exp2f(s[h * pitch + i] - most);
      s[h * pitch + i] = x;
      sum += x;
    }
    sum = warp_sum(sum);
    for (int i = n + lane; i < pitch; i += 32) s[h * pitch + i] = 0;
    if (lane == 0) {
      top[h] = most + log2f(sum);
      factor[h] = 1.0f / sum;
    }
  }
  __syncthreads();
  if (f.log_sum != nullptr && threadIdx.x < heads) {
    f.log_sum[t * heads + threadIdx.x] = top[threadIdx.x];
  }
  if (f.target != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < f.a.k; i += kThreads) {
      float sum = 0;
      for (int h = 0; i < n && h < heads; ++h) sum += s[h * pitch + i] * factor[h];
      f.target[t * f.a.k + i] = sum / static_cast<float>(heads);
    }
  }
  if (f.out == nullptr) return;
  float o[kMine][2][4] = {};
  over_tiles<kParts>(f.gathered, set, n, tiles, [&](int base, const Tile& rows) {
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * kTile; i += kThreads) {
      const int h = i / kTile, c = i % kTile;
      put<kParts>(p, h, c, s[h * pitch + base + c] * factor[h]);
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kTile; step += 16) {
      const Factor<kParts> a = left<kParts>(p, 0, step);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        const int col = (warp + j * kWarps) * 16;
        if (col < f.latent) multiply<kParts>(o[j], a, right<kParts>(rows, step, col));
      }
    }
  });
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int h = lane / 4 + e % 4 / 2 * 8;
      const int c = (warp + j * kWarps) * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (h < heads && c < f.a.kv_lora) {
        f.out[(t * heads + h) * f.a.kv_lora + c] = o[j][e / 4][e % 4];
      }
    }
  }
}

template <int kParts, int kMine, bool kAtomic>
__global__ void __launch_bounds__(kThreads) few_backward(const Few f) {
  extern __shared__ __align__(16) unsigned char bytes[];
  Space space{bytes};
  const Tile q = space.tile(kHeads, f.width, kParts);
  const Tile g = space.tile(kHeads, f.latent, kParts);
  const Tile tile0 = space.tile(kTile, f.width, kParts);
  const Tile tile1 = f.gathered.stages == 2 ? space.tile(kTile, f.width, kParts) : tile0;
  const Tile tiles[2] = {tile0, tile1};
  const Tile p = space.tile(kHeads, kTile, kParts), ds = space.tile(kHeads, kTile, kParts);
  float* dp = space.floats(kHeads * kFloatPitch);
  float* log_sum = space.floats(kHeads);
  float* delta = space.floats(kHeads);

  const int64_t t = f.first + blockIdx.x, heads = f.a.heads, latent = f.a.kv_lora;
  const int32_t* set = f.a.indices + t * f.a.k;
  const int n = entries(set, f.a.k);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  load_heads<kParts>(q, 0, f.a.q_latent + t * heads * latent, latent, heads, latent, f.latent);
  load_heads<kParts>(q, f.latent, f.a.q_pe + t * heads * f.a.q_pe_stride, f.a.q_pe_stride, heads,
                     f.a.rope, f.width - f.latent);
  load_heads<kParts>(g, 0, f.a.d_out + t * heads * latent, latent, heads, latent, f.latent);
  for (int h = warp; h < kHeads; h += kWarps) {  // sum of P dP = d_out . out
    float sum = 0;
    const int64_t at = (t * heads + h) * latent;
    for (int c = lane; h < heads && c < latent; c += 32) {
      sum = fmaf(f.a.d_out[at + c], f.out[at + c], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      delta[h] = sum;
      log_sum[h] = h < heads ? f.log_sum[t * heads + h] : 0;
    }
  }
  const float scale = f.a.softmax_scale * kLog2e;
  const int64_t width = latent + f.a.rope;
  float dq[kMine][2][4] = {};
  over_tiles<kParts>(f.gathered, set, n, tiles, [&](int base, const Tile& rows) {
    float d[4];
    const int key = warp % 4 * 8;
    scores<kParts>(warp < 4 ? q : g, rows, key, 0, warp < 4 ? f.width : f.latent, d);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (warp >= 4) {
        dp[(lane / 4 + e / 2 * 8) * kFloatPitch + key + lane % 4 * 2 + e % 2] = d[e];
      }
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int h = lane / 4 + e / 2 * 8, c = key + lane % 4 * 2 + e % 2;
      if (warp >= 4) continue;
      const bool there = base + c < n && h < heads;
      const float x = there ? exp2f(scale * d[e] - log_sum[h]) : 0;
      put<kParts>(p, h, c, x);
      put<kParts>(ds, h, c, f.a.softmax_scale * x * (dp[h * kFloatPitch + c] - delta[h]));
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kTile; step += 16) {
      const Factor<kParts> a = left<kParts>(ds, 0, step);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        const int col = (warp + j * kWarps) * 16;
        if (col < f.width) multiply<kParts>(dq[j], a, right<kParts>(rows, step, col));
      }
    }
#pragma unroll
    for (int m = 0; m < kTile; m += 16) {
      const Factor<kParts> a = left_trans<kParts>(ds, 0, m), b = left_trans<kParts>(p, 0, m);
#pragma unroll 1
      for (int col = warp * 16; col < f.width; col += kWarps * 16) {
        float d_row[2][4] = {};
        multiply<kParts>(d_row, a, right<kParts>(q, 0, col));
        if (col < f.latent) multiply<kParts>(d_row, b, right<kParts>(g, 0, col));
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int i = base + m + lane / 4 + e % 4 / 2 * 8;
          const int c = column_of(f, col + e / 4 * 8 + lane % 4 * 2 + e % 2);
          if (i >= n || c < 0) continue;
          const float x = d_row[e / 4][e % 4];
          if constexpr (kAtomic) {
            const int64_t s = set[i];
            atomicAdd(
                c < latent ? f.a.dc_kv + s * latent + c : f.a.dk_pe + s * f.a.rope + c - latent, x);
          } else {
            f.row_gradients[(int64_t{blockIdx.x} * f.a.k + i) * width + c] = x;
          }
        }
      }
    }
  });
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int h = lane / 4 + e % 4 / 2 * 8;
      const int c = column_of(f, (warp + j * kWarps) * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2);
      if (h >= heads || c < 0) continue;
      if (c < latent) {
        f.a.dq_latent[(t * heads + h) * latent + c] = dq[j][e / 4][e % 4];
      } else {
        f.a.dq_pe[(t * heads + h) * f.a.q_pe_stride + c - latent] = dq[j][e / 4][e % 4];
      }
    }
  }
}

// ---- launches

constexpr int kSpare = 64;  // what the last step of scores may read past a tile

int forward_bytes(const Few& f, int parts) {
  const int k = (static_cast<int>(f.a.k) + kTile - 1) / kTile * kTile + 1;
  return tile_bytes(kHeads, f.width, parts) +
         f.gathered.stages * tile_bytes(kTile, f.width, parts) + tile_bytes(kHeads, kTile, parts) +
         (kHeads * (k + kFloatPitch + 2) + 16) * 4 + kSpare;
}
int backward_bytes(const Few& f, int parts) {
  return tile_bytes(kHeads, f.width, parts) + tile_bytes(kHeads, f.latent, parts) +
         f.gathered.stages * tile_bytes(kTile, f.width, parts) +
         2 * tile_bytes(kHeads, kTile, parts) + (kHeads * (kFloatPitch + 2) + 16) * 4 + kSpare;
}

template <typename Bytes>
int stages_that_fit(Few f, int parts, const Bytes& bytes) {
  f.gathered.stages = 2;
  return bytes(f, parts) <= most_shared() ? 2 : 1;
}

Few sizes_of(const Args& a) {
  Few f;
  f.a = a;
  f.latent = padded(a.kv_lora);
  f.width = f.latent + padded(a.rope);
  f.gathered.k = a.k;
  f.gathered.width = f.width;
  return f;
}

void start(KernelContext& context, void (*kernel)(Few), const Few& f, int64_t tokens, int bytes,
           const char* name) {
  allow_shared(reinterpret_cast<const void*>(kernel), bytes, name);
  kernel<<<static_cast<unsigned>(tokens), kThreads, static_cast<size_t>(bytes),
           stream_of(context)>>>(f);
  check_launch(name);
}

template <int kParts>
void pack(KernelContext& context, Few& f) {
  const int64_t values = (f.a.first + f.a.tokens) * f.width;
  auto* rows = static_cast<uint16_t*>(device_scratch(context, kPackedSlot, values * kParts * 2));
  pack_kernel<kParts><<<static_cast<unsigned>((values + kThreads - 1) / kThreads), kThreads, 0,
                        stream_of(context)>>>(f, rows);
  check_launch("mla_sparse (pack)");
  f.gathered.rows = rows;
}

constexpr int kShort = 2, kLong = 5;  // steps of 16 columns that a warp has

template <int kParts>
void forward(KernelContext& context, Few f) {
  f.gathered.stages = stages_that_fit(f, kParts, forward_bytes);
  const auto kernel =
      f.width <= kShort * kWarps * 16 ? few_forward<kParts, kShort> : few_forward<kParts, kLong>;
  start(context, kernel, f, f.a.tokens, forward_bytes(f, kParts), "mla_sparse_train (few heads)");
}

template <int kParts>
void backward(KernelContext& context, Few f) {
  f.gathered.stages = stages_that_fit(f, kParts, backward_bytes);
  const bool narrow = f.width <= kShort * kWarps * 16;
  const auto ordered =
      narrow ? few_backward<kParts, kShort, false> : few_backward<kParts, kLong, false>;
  const auto at_once =
      narrow ? few_backward<kParts, kShort, true> : few_backward<kParts, kLong, true>;
  const int bytes = backward_bytes(f, kParts);
  if (adds_atomically(context)) {
    return start(context, at_once, f, f.a.tokens, bytes, "mla_sparse_backward (few heads)");
  }
  constexpr int64_t kFloats = int64_t{1} << 28;
  const Args& a = f.a;
  const int64_t width = a.kv_lora + a.rope;
  const int64_t size = std::clamp<int64_t>(kFloats / (a.k * width), 1, a.tokens);
  f.row_gradients =
      static_cast<float*>(device_scratch(context, kRowsSlot, size * a.k * width * int64_t{4}));
  for (f.first = 0; f.first < a.tokens; f.first += size) {
    const int64_t count = std::min(size, a.tokens - f.first);
    start(context, ordered, f, count, bytes, "mla_sparse_backward (few heads)");
    const int64_t first = a.first + f.first;
    scatter_rows(context, {a.indices + f.first * a.k, count, a.k, first + count, f.row_gradients,
                           width, a.kv_lora, a.dc_kv, a.dk_pe, a.sequences, first});
  }
}

void run_forward(KernelContext& context, Few& f) {
  exact(context) ? pack<2>(context, f) : pack<1>(context, f);
  exact(context) ? forward<2>(context, f) : forward<1>(context, f);
}

}  // namespace

bool mla_sparse_few_supports(const MlaSparseBackwardArgs<float>& a) {
  Few f = sizes_of(a);
  return a.heads <= kHeads && f.width <= kLong * kWarps * 16 && a.k <= (1 << 14) &&
         forward_bytes(f, 2) <= most_shared() && backward_bytes(f, 2) <= most_shared();
}

void mla_sparse_train_few(KernelContext& context, const MlaSparseTrainArgs& args) {
  if (args.in.tokens == 0) return;
  Few f = sizes_of(args.in);
  f.out = args.out;
  f.log_sum = args.log_sum;
  f.target = args.target;
  run_forward(context, f);
}

void mla_sparse_target_few(KernelContext& context, const MlaSparseTargetArgs<float>& args) {
  if (args.in.tokens == 0) return;
  Few f = sizes_of(args.in);
  f.target = args.p;
  run_forward(context, f);
}

void mla_sparse_backward_few(KernelContext& context, const Args& a) {
  if (a.tokens == 0) return;
  context.device()->fill(a.dc_kv + a.first * a.kv_lora, 0, a.tokens * a.kv_lora * 4);
  context.device()->fill(a.dk_pe + a.first * a.rope, 0, a.tokens * a.rope * 4);
  Few f = sizes_of(a);
  if (a.out == nullptr || a.log_sum == nullptr) {
    const int64_t rows = a.tokens * a.heads;
    f.out = static_cast<float*>(device_scratch(context, kOutSlot, rows * a.kv_lora * int64_t{4}));
    f.log_sum = static_cast<float*>(device_scratch(context, kLogSlot, rows * int64_t{4}));
    run_forward(context, f);
  } else {  // read alone from here on
    f.out = const_cast<float*>(a.out);
    f.log_sum = const_cast<float*>(a.log_sum);
    exact(context) ? pack<2>(context, f) : pack<1>(context, f);
  }
  exact(context) ? backward<2>(context, f) : backward<1>(context, f);
}

}  // namespace tamis
