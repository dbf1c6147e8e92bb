// mla_sparse on the tensor cores: latents of 512 + 64 in bf16 or FP8, any number of heads.
//
//   x[h,s] = log2(e) scale (q_latent[h] . c_kv[s] + q_pe[h] . k_pe[s])       [heads, 64] a step
//   p      = 2^(x - max), rounded to bf16;   out[h] = sum_s p[h,s] c_kv[s] / sum_s p[h,s]
//
// A block of 8 warps has 64 (or 16) heads of one token and goes through its list in steps of 64
// entries. A step: its rows are gathered into shared memory (1152 bytes each, for both products);
// pairs of warps share the scores, 32 heads x 32 keys (or 16 x 16), a warp for each half of the
// columns; the halves are added and the maxima meet in shared memory; p goes there; then each warp
// adds 64 of the 512 columns for all heads. The next rows are on their way
// meanwhile: bf16 into a second buffer, FP8 as they are (656 bytes), turned to bf16 when the step
// begins, which is exact because the cache's scales are powers of two.
//   shared memory, 64 heads: q 72 KiB, rows 2 x 72 (FP8 72 + 41), p 8; not staged: 155 KiB
//   registers: 128 of a thread's hold the 64 x 512 sums
// 16-byte chunks of rows are exchanged by the row's last three bits, so that no ldmatrix meets a
// bank twice.
//
// Bits: a score is two chains of mma over half of its 576 columns, added; a step's sum of p is a
// fixed tree; chunks of the list (attention_list.cuh) start from nothing and are folded in order.
// None of it depends on the heads of a block, on who folds, or on the batch.
//
// Bound: a step of 64 heads is 8.9 MFLOP, 1840 clocks of an SM for the scores and 1640 for the
// values at mma.sync's rate; the operands in shared memory take 2560 and 1020 clocks to read. So
// scores are bound by shared memory, values by mma.sync. Gathering takes 74 KB a step from L2.
#pragma once

#include "kernels/cuda/attention_list.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla_sparse/mla_sparse_mma.h"

namespace tamis::mla_mma {

constexpr int kWarps = kThreads / 32, kWidth = kLatent + kRope;
constexpr int kRowBytes = kWidth * 2, kFp8RowBytes = kLatent + kLatent / 128 * 4 + kRope * 2;
constexpr int kSteps = kWidth / 16;         // of mma in a score
constexpr int kColumns = kLatent / kWarps;  // of the sums, a warp
constexpr int kGroups = kKeys / 8;          // of keys, the n of an mma
constexpr uint32_t kAll = 0xFFFFFFFFu;
constexpr float kLog2e = 1.4426950408889634f;
constexpr uint32_t kPage = kPageTokens;
static_assert(kGroups == kWarps, "a warp gathers the rows of one group");

template <bool kFp8_, int kHeads_, bool kStaged_>
struct Config {
  static constexpr bool kFp8 = kFp8_, kStaged = kStaged_;
  static constexpr int kHeads = kHeads_, kHeadTiles = kHeads / 16;
  // Scores: two warps, one for each half of the columns, share kMt tiles of heads by kNt groups of
  // keys; each ends with half of the groups.
  static constexpr int kMt = kHeadTiles == 4 ? 2 : 1, kHeadWarps = kHeadTiles / kMt;
  static constexpr int kKeyWarps = kWarps / 2 / kHeadWarps, kNt = kGroups / kKeyWarps;
  static constexpr int kOwn = kNt / 2, kParts = 2 * kKeyWarps;  // warps that share a row
  static constexpr int kBuffers = kStaged && !kFp8 ? 2 : 1;     // of bf16 rows
  static constexpr int kRawRows = kStaged && kFp8 ? kKeys : 0;
  static_assert(kMt * kHeadWarps * 16 == kHeads && kOwn * kParts == kGroups);
};

template <typename C>
struct alignas(128) Shared {
  std::byte q[C::kHeads * kRowBytes];
  std::byte k[C::kBuffers][kKeys * kRowBytes];
  std::byte p[C::kHeads * kKeys * 2];
  std::byte raw[C::kRawRows * kFp8RowBytes + 16];
  float max[C::kHeads][C::kParts];
  float sum[C::kHeads][C::kParts];
  float left[C::kHeads];                // what a row's sums so far are multiplied by
  alignas(8) uint8_t seen[2][kGroups];  // [step % 2]: which keys of a group there are

  // Between chunks: what a row's newer sums are multiplied by.
  __device__ float& right(int row) { return sum[row][0]; }
};

// Where 16-byte chunk `chunk` of a row lies in it.
__device__ inline int swizzled(int row, int chunk) { return (chunk ^ (row & 7)) * 16; }

// One block's work: a token, its heads from head0 on, and steps [step, end) of its list.
struct Item {
  AttentionList list;
  int64_t t, head0;
  int rows;  // heads of the block that exist
  int chunk, step, end, entries;
};

template <typename C>
__device__ Item item_of(const MlaSparseArgs& a, const Parts& parts, int64_t i) {
  const int64_t groups = (a.heads + C::kHeads - 1) / C::kHeads;
  Item item;
  item.head0 = i % groups * C::kHeads;
  item.rows = static_cast<int>(min(a.heads - item.head0, int64_t{C::kHeads}));
  i /= groups;
  item.chunk = 0;
  if (parts.chunks != 0) {
    item.chunk = static_cast<int>(i % parts.chunks);
    i /= parts.chunks;
  }
  item.t = i;
  item.list = list_of(a, i);
  item.entries = item.list.length;
  item.step = 0;
  if (parts.chunks != 0) {
    item.step = item.chunk * item.list.chunk / kKeys;
    item.entries = min(item.entries, (item.chunk + 1) * item.list.chunk);
  }
  item.end = (item.entries + kKeys - 1) / kKeys;
  return item;
}

// The two rows of a step that eight lanes of a warp gather: entries 8 warp + lane / 8 (+ 4). Their
// positions are read two steps before they are wanted and their pages one step before, and nothing
// is worked out from either until then: it would wait.
struct Rows {
  int position[2];  // -1: there is none
  int page[2];

  __device__ void find_positions(const Item& item, int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = step * kKeys + warp * 8 + lane / 8 + 4 * i;
      position[i] = e < item.entries ? item.list.entry(e) : -1;
    }
  }
  __device__ void find_pages(const Item& item) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto at = static_cast<uint32_t>(max(position[i], 0)) / kPage;
      page[i] = item.list.sequence.pages[at];
    }
  }
  __device__ bool valid(int i) const { return position[i] >= 0; }
  __device__ const std::byte* row(const KvRows& kv, int i) const {
    const auto slot = static_cast<uint32_t>(position[i]) % kPage;
    return kv.base + page[i] * kv.page_stride + slot * static_cast<uint32_t>(kv.row_bytes);
  }
};

// Notes which of a step's rows there are.
template <typename C>
__device__ void note_rows(Shared<C>& s, const Rows& rows, int step) {
  uint32_t seen = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t lanes = __ballot_sync(kAll, rows.valid(i));
#pragma unroll
    for (int r = 0; r < 4; ++r) seen |= (lanes >> (8 * r) & 1u) << (4 * i + r);
  }
  if (threadIdx.x % 32 == 0) s.seen[step % 2][threadIdx.x / 32] = static_cast<uint8_t>(seen);
}

// Starts copying a warp's eight rows, eight lanes a row; those that are not there become zeros.
template <typename C>
__device__ void start_copy(Shared<C>& s, const KvRows& kv, const Rows& rows, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool valid = rows.valid(i);
    const std::byte* from = (valid ? rows.row(kv, i) : kv.base) + lane % 8 * 16;
    const int row = warp * 8 + lane / 8 + 4 * i;
    if constexpr (!C::kFp8) {
      std::byte* to = s.k[step % C::kBuffers] + row * kRowBytes + swizzled(row, lane % 8);
#pragma unroll
      for (int c = 0; c < kRowBytes / 128; ++c) {
        ptx::cp_async_16(to + c * 128, from + c * 128, valid);
      }
    } else if constexpr (C::kStaged) {
      std::byte* to = s.raw + row * kFp8RowBytes + lane % 8 * 16;
#pragma unroll
      for (int c = 0; c < kFp8RowBytes / 128; ++c) {
        ptx::cp_async_16(to + c * 128, from + c * 128, valid);
      }
      constexpr int kRest = kFp8RowBytes / 128 * 128;
      if (lane % 8 < (kFp8RowBytes - kRest) / 16) {
        ptx::cp_async_16(to + kRest, from + kRest, valid);
      }
    }
  }
  ptx::cp_async_commit();
}

// Eight e4m3 codes times `scale` as bf16.
__device__ inline uint4 dequantise8(const uint2& codes, float scale) {
  uint32_t pairs[4], out[4];
  ptx::e4m3x4_to_f16x2(codes.x, &pairs[0], &pairs[1]);
  ptx::e4m3x4_to_f16x2(codes.y, &pairs[2], &pairs[3]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
    out[i] = ptx::pack_bf16(v.x * scale, v.y * scale);
  }
  return {out[0], out[1], out[2], out[3]};
}

// A warp's eight FP8 rows as bf16 rows of s.k[0]: from s.raw, or from the cache itself.
template <typename C>
__device__ void dequantise_rows(Shared<C>& s, const KvRows& kv, const Rows& rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const int row = warp * 8 + r;
    const std::byte* from = s.raw + row * kFp8RowBytes;
    std::byte* to = s.k[0] + row * kRowBytes;
    if constexpr (!C::kStaged) {
      const auto own = rows.valid(r / 4) ? reinterpret_cast<uintptr_t>(rows.row(kv, r / 4)) : 0;
      from = reinterpret_cast<const std::byte*>(__shfl_sync(kAll, own, r % 4 * 8));
    }
    const bool valid = from != nullptr;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int chunk = half * 32 + lane;  // of the bf16 row
      uint4 out{};
      if (valid) {
        const auto codes = *reinterpret_cast<const uint2*>(from + chunk * 8);
        out = dequantise8(codes, *reinterpret_cast<const float*>(from + kLatent + chunk / 16 * 4));
      }
      *reinterpret_cast<uint4*>(to + swizzled(row, chunk)) = out;
    }
    if (lane < kRope / 8) {
      uint4 out{};
      if (valid) {
        out = *reinterpret_cast<const uint4*>(from + kFp8RowBytes - kRope * 2 + lane * 16);
      }
      *reinterpret_cast<uint4*>(to + swizzled(row, kLatent / 8 + lane)) = out;
    }
  }
}

template <typename C>
__device__ void load_queries(const MlaSparseArgs& a, const Item& item, Shared<C>& s) {
  constexpr int kChunks = kLatent / 8;
#pragma unroll 8  // as many reads under way as registers are free before the sums are there
  for (int i = static_cast<int>(threadIdx.x); i < C::kHeads * kChunks; i += kThreads) {
    const int r = i / kChunks, chunk = i % kChunks;
    float4 x{}, y{};
    if (r < item.rows) {
      const auto* q = reinterpret_cast<const float4*>(
          a.q_latent + (item.t * a.heads + item.head0 + r) * kLatent + chunk * 8);
      x = q[0];
      y = q[1];
    }
    *reinterpret_cast<uint4*>(s.q + r * kRowBytes + swizzled(r, chunk)) = {
        ptx::pack_bf16(x.x, x.y), ptx::pack_bf16(x.z, x.w), ptx::pack_bf16(y.x, y.y),
        ptx::pack_bf16(y.z, y.w)};
  }
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < C::kHeads * kRope / 2; i += kThreads) {
    const int r = i / (kRope / 2), d = i % (kRope / 2) * 2;
    float x = 0, y = 0;
    if (r < item.rows) {
      const float* q =
          a.q_pe + item.t * a.q_pe_token_stride + (item.head0 + r) * a.q_pe_head_stride + d;
      x = q[0];
      y = q[1];
    }
    *reinterpret_cast<uint32_t*>(s.q + r * kRowBytes + swizzled(r, kLatent / 8 + d / 8) +
                                 d % 8 * 2) = ptx::pack_bf16(x, y);
  }
}

// Which scores a warp computes: heads 16 head .., groups of keys from `group` on, the columns of
// every second pair of mma steps from 2 `half` on. It keeps kOwn groups from `own` on.
template <typename C>
struct Role {
  int half, pair, head, group, own, part;

  __device__ Role() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    half = warp / (kWarps / 2);
    pair = warp % (kWarps / 2);
    head = pair % C::kHeadWarps * C::kMt;
    const int key_warp = pair / C::kHeadWarps;
    group = key_warp * C::kNt;
    own = group + half * C::kOwn;
    part = key_warp * 2 + half;
  }
};

// Operands of one step of mma, of a warp's scores.
template <typename C>
struct ScoreOperands {
  uint32_t a[C::kMt][4], b[C::kNt / 2][4];

  // Step k of the warp's: `q` and `key` are its lanes' rows, with their places in a row exchanged.
  __device__ void load(const std::byte* q, int q_at, const std::byte* key, int key_at, int k) {
    const int base = k / 2 * 128, step = k % 2 * 32;
#pragma unroll
    for (int m = 0; m < C::kMt; ++m) {
      ptx::ldmatrix_x4(a[m], q + m * 16 * kRowBytes + base + (step ^ q_at));
    }
#pragma unroll
    for (int n = 0; n < C::kNt / 2; ++n) {
      ptx::ldmatrix_x4(b[n], key + n * 16 * kRowBytes + base + (step ^ key_at));
    }
  }
};

// The warp's products over its half of the columns, as mma leaves them.
template <typename C>
__device__ inline void multiply_scores(const Shared<C>& s, const std::byte* k, const Role<C>& role,
                                       float (&x)[C::kMt][C::kNt][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::byte* q = s.q + (role.head * 16 + lane % 16) * kRowBytes;
  const std::byte* key = k + (role.group * 8 + lane / 16 * 8 + lane % 8) * kRowBytes;
  const int q_at = (lane / 16 ^ lane % 8) * 16 ^ role.half * 64;
  const int key_at = (lane / 8 % 2 ^ lane % 8) * 16 ^ role.half * 64;
  ScoreOperands<C> operands[2];
  operands[0].load(q, q_at, key, key_at, 0);
#pragma unroll
  for (int m = 0; m < C::kMt; ++m) {
#pragma unroll
    for (int n = 0; n < C::kNt; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[m][n][i] = 0;
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps / 2; ++step) {
    if (step + 1 < kSteps / 2) operands[(step + 1) % 2].load(q, q_at, key, key_at, step + 1);
    const ScoreOperands<C>& o = operands[step % 2];
#pragma unroll
    for (int m = 0; m < C::kMt; ++m) {
#pragma unroll
      for (int n = 0; n < C::kNt; n += 2) {
        mma_bf16(x[m][n], o.a[m], o.b[n / 2][0], o.b[n / 2][1]);
        mma_bf16(x[m][n + 1], o.a[m], o.b[n / 2][2], o.b[n / 2][3]);
      }
    }
  }
}

// Adds the two halves of the columns: each warp of a pair sends the groups that the other keeps.
// The messages lie in s.p and in the RoPE columns of the rows, whose turn is over. A barrier before
// them, one after.
template <typename C>
__device__ inline void exchange(Shared<C>& s, std::byte* k, const Role<C>& role,
                                const float (&x)[C::kMt][C::kNt][4],
                                float (&own)[C::kMt][C::kOwn][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto message = [&](int half, int m, int n) {
    const int place = (role.pair * C::kMt + m) * C::kOwn + n;  // of 512 bytes
    std::byte* at = half == 0
                        ? s.p + place * 512 + lane * 16
                        : k + (place * 4 + lane / 8) * kRowBytes + kLatent * 2 + lane % 8 * 16;
    return reinterpret_cast<float4*>(at);
  };
  const bool low = role.half == 0;
  __syncthreads();
#pragma unroll
  for (int m = 0; m < C::kMt; ++m) {
#pragma unroll
    for (int n = 0; n < C::kOwn; ++n) {
      const float(&a)[4] = x[m][n];
      const float(&b)[4] = x[m][n + C::kOwn];
#pragma unroll
      for (int i = 0; i < 4; ++i) own[m][n][i] = low ? a[i] : b[i];
      *message(role.half, m, n) = {low ? b[0] : a[0], low ? b[1] : a[1], low ? b[2] : a[2],
                                   low ? b[3] : a[3]};
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < C::kMt; ++m) {
#pragma unroll
    for (int n = 0; n < C::kOwn; ++n) {
      const float4 other = *message(1 - role.half, m, n);
      own[m][n][0] += other.x;
      own[m][n][1] += other.y;
      own[m][n][2] += other.z;
      own[m][n][3] += other.w;
    }
  }
}

// From scores to s.p, s.left (what the sums so far are multiplied by) and s.sum (of p, by parts).
// `max` is that of the thread's rows g and g + 8 of each tile. One barrier inside, one is wanted
// after.
template <typename C>
__device__ inline void soften(Shared<C>& s, float scale, int step, const Role<C>& role,
                              float (&x)[C::kMt][C::kOwn][4], float (&max)[C::kMt][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < C::kMt; ++m) {
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < C::kOwn; ++n) {
      const uint32_t seen = s.seen[step % 2][role.own + n] >> (2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[m][n][i] = (seen >> (i % 2) & 1u) != 0 ? x[m][n][i] * scale : -INFINITY;
        top[i / 2] = ptx::max_nan(top[i / 2], x[m][n][i]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = ptx::max_nan(top[r], __shfl_xor_sync(kAll, top[r], 1));
      top[r] = ptx::max_nan(top[r], __shfl_xor_sync(kAll, top[r], 2));
      if (t == 0) s.max[(role.head + m) * 16 + g + 8 * r][role.part] = top[r];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < C::kMt * 2; ++i) {
    const int m = i / 2, r = i % 2, row = (role.head + m) * 16 + g + 8 * r;
    float now = max[m][r];
#pragma unroll
    for (int w = 0; w < C::kParts; ++w) now = ptx::max_nan(now, s.max[row][w]);
    if (role.part == 0 && t == 0) s.left[row] = ptx::ex2(max[m][r] - now);
    max[m][r] = now;
    float of_part = 0;
#pragma unroll
    for (int n = 0; n < C::kOwn; ++n) {
      const float p0 = ptx::ex2(x[m][n][2 * r] - now), p1 = ptx::ex2(x[m][n][2 * r + 1] - now);
      float sum = p0 + p1;
      sum += __shfl_xor_sync(kAll, sum, 1);
      sum += __shfl_xor_sync(kAll, sum, 2);
      of_part = n == 0 ? sum : of_part + sum;
      *reinterpret_cast<uint32_t*>(s.p + row * kKeys * 2 + swizzled(row, role.own + n) + 4 * t) =
          ptx::pack_bf16(p0, p1);
    }
    if (t == 0) s.sum[row][role.part] = of_part;
  }
}

// A step's sum of p of row `r`: pairs, pairs of pairs, and both halves of the eight groups.
template <typename C>
__device__ inline float step_sum(const Shared<C>& s, int r) {
  const float* v = s.sum[r];
  const float first = (v[0] + v[1]) + (v[2] + v[3]);
  if constexpr (C::kParts == 4) {
    return first;
  } else {
    return first + ((v[4] + v[5]) + (v[6] + v[7]));
  }
}

// The sums of a warp: all heads of the block, columns 64 warp .. as mma leaves them.
template <typename C>
struct Values {
  float sum[C::kHeadTiles][kColumns / 8][4];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < C::kHeadTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] = 0;
      }
    }
  }
};

template <typename C>
__device__ inline void add_values(const Shared<C>& s, const std::byte* k, Values<C>* v) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4;
#pragma unroll
  for (int m = 0; m < C::kHeadTiles; ++m) {
    const float low = s.left[16 * m + g], high = s.left[16 * m + g + 8];
    if (!__any_sync(kAll, low != 1.0f || high != 1.0f)) continue;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      v->sum[m][n][0] *= low;
      v->sum[m][n][1] *= low;
      v->sum[m][n][2] *= high;
      v->sum[m][n][3] *= high;
    }
  }
  const std::byte* key = k + lane % 16 * kRowBytes + warp * kColumns * 2;
  const int at = (lane / 16 ^ lane % 8) * 16;
  const std::byte* p = s.p + lane % 16 * kKeys * 2;
  // Operands are loaded one product (a) or one step of 16 keys (b) ahead.
  constexpr int kPairs = kColumns / 16, kProducts = kKeys / 16 * C::kHeadTiles;
  uint32_t a[2][4], b[2][kPairs][4];
  const auto load_a = [&](int i) {
    const int step = i / C::kHeadTiles, m = i % C::kHeadTiles;
    ptx::ldmatrix_x4(a[i % 2], p + m * 16 * kKeys * 2 + (step * 32 ^ at));
  };
  const auto load_b = [&](int step, int n) {
    ptx::ldmatrix_x4_trans(b[step % 2][n], key + step * 16 * kRowBytes + (n * 32 ^ at));
  };
#pragma unroll
  for (int n = 0; n < kPairs; ++n) load_b(0, n);
  load_a(0);
#pragma unroll
  for (int i = 0; i < kProducts; ++i) {
    const int step = i / C::kHeadTiles, m = i % C::kHeadTiles;
    if (step + 1 < kKeys / 16) {
#pragma unroll
      for (int n = m; n < kPairs; n += C::kHeadTiles) load_b(step + 1, n);
    }
    if (i + 1 < kProducts) load_a(i + 1);
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      mma_bf16(v->sum[m][2 * n], a[i % 2], b[step % 2][n][0], b[step % 2][n][1]);
      mma_bf16(v->sum[m][2 * n + 1], a[i % 2], b[step % 2][n][2], b[step % 2][n][3]);
    }
  }
}

// Two parts of a list, left then right. mla_mma_combine does the same.
struct Fold {
  float left, right;
};
__device__ inline Fold fold(const Softmax& left, const Softmax& right, Softmax* out) {
  const float max = ptx::max_nan(left.max, right.max);
  const Fold f{ptx::ex2(left.max - max), ptx::ex2(right.max - max)};
  *out = {max, fmaf(left.sum, f.left, right.sum * f.right)};
  return f;
}

// The sums of this chunk behind those the block kept.
template <typename C>
__device__ void fold_kept(Shared<C>& s, const float4* kept, Values<C>* v) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int m = 0; m < C::kHeadTiles; ++m) {
    const int row = 16 * m + g;
    const float l0 = s.left[row], l1 = s.left[row + 8], r0 = s.right(row), r1 = s.right(row + 8);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const float4 k = kept[(m * (kColumns / 8) + n) * kThreads];
      float(&x)[4] = v->sum[m][n];
      x[0] = fmaf(k.x, l0, x[0] * r0);
      x[1] = fmaf(k.y, l0, x[1] * r0);
      x[2] = fmaf(k.z, l1, x[2] * r1);
      x[3] = fmaf(k.w, l1, x[3] * r1);
    }
  }
}

template <typename C>
__device__ void keep(const Values<C>& v, float4* kept) {
#pragma unroll
  for (int m = 0; m < C::kHeadTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const float(&x)[4] = v.sum[m][n];
      kept[(m * (kColumns / 8) + n) * kThreads] = {x[0], x[1], x[2], x[3]};
    }
  }
}

// Rows of the block times s.right to `out`, whose rows are 512 floats.
template <typename C>
__device__ void store(Shared<C>& s, const Values<C>& v, int rows, float* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int m = 0; m < C::kHeadTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + lane / 4 + 8 * half;
      if (row >= rows) continue;
      const float factor = s.right(row);
      float* to = out + int64_t{row} * kLatent + warp * kColumns + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n) = {v.sum[m][n][2 * half] * factor,
                                                  v.sum[m][n][2 * half + 1] * factor};
      }
    }
  }
}

// What a block carries from step to step.
template <typename C>
struct State {
  Values<C> values;
  float max[C::kMt][2];  // of the thread's rows of scores
  float sum;             // of row threadIdx.x
  Softmax kept;          // of row threadIdx.x: the chunks before this one
  bool has_kept;

  __device__ void clear() {
    values.clear();
#pragma unroll
    for (int m = 0; m < C::kMt; ++m) max[m][0] = max[m][1] = -INFINITY;
    sum = 0;
  }
};

// The end of a chunk, or of the list: folds it with the chunks before, or hands it out.
template <typename C>
__device__ void end_chunk(const MlaSparseArgs& a, const Parts& parts, const Item& item, bool last,
                          Shared<C>& s, const Role<C>& role, State<C>* state) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x);
  float4* kept = reinterpret_cast<float4*>(parts.sums) +
                 int64_t{blockIdx.x} * C::kHeads * kLatent / 4 + threadIdx.x;
  if (role.part == 0 && lane % 4 == 0) {
#pragma unroll
    for (int m = 0; m < C::kMt; ++m) {
      s.max[(role.head + m) * 16 + lane / 4][0] = state->max[m][0];
      s.max[(role.head + m) * 16 + lane / 4 + 8][0] = state->max[m][1];
    }
  }
  __syncthreads();  // also: everyone has read s.left
  const bool whole = parts.chunks == 0;
  if (row < C::kHeads) {
    const Softmax mine{s.max[row][0], state->sum};
    if (!whole) {
      s.right(row) = 1;
      const int64_t at = (item.t * parts.chunks + item.chunk) * a.heads + item.head0 + row;
      if (row < item.rows) parts.stats[at] = mine;
    } else if (state->has_kept) {
      const Fold f = fold(state->kept, mine, &state->kept);
      s.left[row] = f.left;
      s.right(row) = f.right;
    } else {
      state->kept = mine;
    }
  }
  __syncthreads();
  if (!whole) {
    const int64_t at = (item.t * parts.chunks + item.chunk) * a.heads + item.head0;
    return store(s, state->values, item.rows, parts.sums + at * kLatent);
  }
  if (state->has_kept) fold_kept(s, kept, &state->values);
  if (!last) {
    keep(state->values, kept);
    state->has_kept = true;
    return state->clear();
  }
  __syncthreads();  // s.right is read
  if (row < C::kHeads) s.right(row) = 1.0f / state->kept.sum;
  __syncthreads();
  store(s, state->values, item.rows, a.out + (item.t * a.heads + item.head0) * kLatent);
}

template <typename C>
__device__ void attend(const MlaSparseArgs& a, const KvRows& kv, const Parts& parts,
                       const Item& item, Shared<C>& s) {
  const Role<C> role;
  // Of this step, the next and the one after that.
  Rows rows, next, after;
  rows.find_positions(item, item.step);
  next.find_positions(item, item.step + 1);
  rows.find_pages(item);
  next.find_pages(item);
  note_rows(s, rows, item.step);
  start_copy(s, kv, rows, item.step);
  load_queries(a, item, s);
  State<C> state;
  state.clear();
  state.has_kept = false;
  const float scale = a.softmax_scale * kLog2e;
  const int chunk_steps = item.list.chunk / kKeys;
  for (int step = item.step;; ++step) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this step's rows are there, the last step's are read
    if constexpr (C::kFp8) {
      dequantise_rows(s, kv, rows);
      __syncthreads();
    }
    const bool more = step + 1 < item.end;
    if (more) {
      note_rows(s, next, step + 1);
      if constexpr (C::kStaged) start_copy(s, kv, next, step + 1);
    }
    after.find_positions(item, step + 2);
    std::byte* k = s.k[step % C::kBuffers];
    float own[C::kMt][C::kOwn][4];
    {
      float x[C::kMt][C::kNt][4];
      multiply_scores(s, k, role, x);
      exchange(s, k, role, x, own);
    }
    soften(s, scale, step, role, own, state.max);
    __syncthreads();
    if (threadIdx.x < C::kHeads) {
      state.sum = fmaf(state.sum, s.left[threadIdx.x], step_sum(s, threadIdx.x));
    }
    const bool last = !more || *reinterpret_cast<const uint64_t*>(s.seen[(step + 1) % 2]) == 0;
    after.find_pages(item);
    add_values(s, k, &state.values);
    rows = next;
    next = after;
    if (last || (step + 1) % chunk_steps == 0) {
      end_chunk(a, parts, item, last, s, role, &state);
      if (last) return;
    }
    if constexpr (!C::kStaged) {
      __syncthreads();  // this step's rows are read
      start_copy(s, kv, rows, step + 1);
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, 1)
    mla_mma_kernel(const MlaSparseArgs a, const KvRows kv, const Parts parts, int64_t items) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared<C>& s = *reinterpret_cast<Shared<C>*>(memory);
  for (int64_t i = blockIdx.x; i < items; i += gridDim.x) {
    const Item item = item_of<C>(a, parts, i);
    if (item.list.entry(item.step * kKeys) < 0) continue;  // no such chunk
    attend(a, kv, parts, item, s);
    ptx::cp_async_wait<0>();
    __syncthreads();  // everything is read; the next item overwrites it
  }
}

template <typename C>
void launch_config(const Launch& l) {
  constexpr int kBytes = sizeof(Shared<C>);
  allow_shared(reinterpret_cast<const void*>(mla_mma_kernel<C>), kBytes, "mla_mma");
  mla_mma_kernel<C><<<static_cast<unsigned>(l.blocks), kThreads, kBytes, l.stream>>>(
      l.args, kv_rows(l.args.kv), l.parts, l.items);
  check_launch("mla_mma");
}

template <bool kFp8>
void launch(const Launch& l) {
  if (l.heads == 16) {
    return l.staged ? launch_config<Config<kFp8, 16, true>>(l)
                    : launch_config<Config<kFp8, 16, false>>(l);
  }
  l.staged ? launch_config<Config<kFp8, 64, true>>(l) : launch_config<Config<kFp8, 64, false>>(l);
}

template <bool kFp8>
int64_t shared_bytes(int heads, bool staged) {
  if (heads == 16) {
    return static_cast<int64_t>(staged ? sizeof(Shared<Config<kFp8, 16, true>>)
                                       : sizeof(Shared<Config<kFp8, 16, false>>));
  }
  return static_cast<int64_t>(staged ? sizeof(Shared<Config<kFp8, 64, true>>)
                                     : sizeof(Shared<Config<kFp8, 64, false>>));
}

}  // namespace tamis::mla_mma
