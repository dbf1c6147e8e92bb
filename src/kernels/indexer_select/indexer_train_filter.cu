// The index scores of training for many heads: on the tensor cores where that decides nothing, and
// with the bits of indexer_train_scores.cu where it could, so that what is selected is the same.
//
// Queries and keys are taken apart into two bf16 values each (split_tiles.cuh); scores from their
// products lie within E of the exact ones, E by token from the norms of queries and keys. T is the
// k-th of a token's approximate scores, or less if just k of them reach it. Whatever the exact ones
// are, a score more than 2 E above T is among the k best and one more than 2 E below is not: k
// scores are exactly at least T - E, and all others at most T + E. What lies between is scored
// again exactly, in its place. In the mixed row a key that is chosen for certain stays above T + 2
// E, where none comes that is not chosen, and likewise below; so the k best of the mixed row are
// those of the exact one, ties by position included, and a selection is the one of serving. A token
// with a value that is not finite, or that could overflow, has E = inf: all of its scores are
// exact.
//
// E / sum_h |w_h| |q_h| |k|: products 3.01 * 2^-18; sums of at most 24 steps on the tensor cores,
// whose 17 terms each are cut at 2^-24 of the largest; the exact dot product 128 * 2^-24; the sums
// over 64 heads, 88 * 2^-24. Together 5e-5, rounded up to 2^-14.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_tiles.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/topk/topk_block.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using namespace split_tiles;  // this file is a body of that header

constexpr int kTokens = 64, kKeys = 128, kStages = 2;  // of a block
constexpr int kMostHeads = 64, kMostDim = 128, kGroups = 4;
constexpr int kBoundSlot = 5, kKeySlot = 3, kQuerySlot = 4;  // topk has 2
constexpr float kError = 0x1p-14F, kLeast = 0x1p-126F, kMost = 1e37F;
// Added to norms, so that a product of factors too small for two parts stays within E.
constexpr float kSmall = 0x1p-50F;

struct Filter {
  IndexerSelectTrainArgs a;
  int64_t first, end;        // tokens of the launch
  const uint16_t *q, *keys;  // [tokens of the launch][heads][2][width], [tokens][2][width]
  float* bound;              // [tokens of the launch]: E
  const uint32_t* key_norm;  // the bits of the longest key's
  float* out;                // [tokens of the launch, stride]
  int64_t stride;

  __device__ int64_t position(int64_t t) const {
    return a.sequences.position == nullptr ? t : int64_t{a.sequences.position[t]};
  }
};

// ---- packing

// One row of `dim` values in two parts of kWidth, by a warp. Returns the sum of squares.
template <int kWidth>
__device__ float pack_row(const float* x, int dim, uint16_t* to) {
  float sum = 0;
  for (int c = static_cast<int>(threadIdx.x) % 32 * 4; c < kWidth; c += 128) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = c + i < dim ? x[c + i] : 0;
      sum = fmaf(v[i], v[i], sum);
    }
    *reinterpret_cast<uint2*>(to + c) =
        make_uint2(ptx::pack_bf16(v[0], v[1]), ptx::pack_bf16(v[2], v[3]));
    *reinterpret_cast<uint2*>(to + kWidth + c) =
        make_uint2(ptx::pack_bf16(low_part(v[0]), low_part(v[1])),
                   ptx::pack_bf16(low_part(v[2]), low_part(v[3])));
  }
  return warp_sum(sum);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    filter_pack_keys(const float* keys, int64_t tokens, int dim, uint16_t* to, uint32_t* norm) {
  const int64_t t = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (t >= tokens) return;
  const float length = sqrtf(pack_row<kWidth>(keys + t * dim, dim, to + t * 2 * kWidth));
  // Without a sign, bits have the order of what they stand for, and those of NaN come last.
  if (threadIdx.x % 32 == 0) atomicMax(norm, __float_as_uint(fabsf(length)));
}

// A warp a token: its queries, and how far its scores can be from the exact ones.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) filter_pack_queries(const Filter f, uint16_t* to) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, t = f.first + row;
  if (t >= f.end) return;
  const auto heads = static_cast<int>(f.a.heads), dim = static_cast<int>(f.a.dim);
  const float key = __uint_as_float(*f.key_norm) + kSmall;
  float sum = 0;
  bool fits = true;
  for (int h = 0; h < heads; ++h) {
    const float squares =
        pack_row<kWidth>(f.a.q + (t * heads + h) * dim, dim, to + (row * heads + h) * 2 * kWidth);
    const float product = (sqrtf(squares) + kSmall) * key;
    fits = fits && product < kMost;  // not so for NaN
    sum = fmaf(fabsf(f.a.w[t * heads + h]), product, sum);
  }
  fits = fits && sum < kMost;
  if (threadIdx.x % 32 == 0) f.bound[row] = fits ? fmaf(kError, sum, kLeast) : INFINITY;
}

// ---- scores

template <int kWidth>
struct ScoresShared {
  static constexpr int kRow = kWidth + 8;
  uint16_t keys[2 * kKeys * kRow], q[kStages][2 * kTokens * kRow];
  float w[kStages][kTokens];
};

// Starts to copy kRows rows of both parts, `row` values apart; zeros past `there`.
template <int kRows, int kWidth>
__device__ void copy(const uint16_t* x, int64_t row, int64_t there, uint16_t* to) {
  constexpr int kPieces = kWidth / 8;
  static_assert(kRows * kPieces % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads, r = at / kPieces;
    const int c = at % kPieces * 8;
    const bool here = r < there;
    const uint16_t* from = x + (here ? r * row + c : 0);
    uint16_t* own = to + r * (kWidth + 8) + c;
    ptx::cp_async_16(own, from, here);
    ptx::cp_async_16(own + kRows * (kWidth + 8), from + kWidth, here);
  }
}

// A warp has 32 tokens by 32 keys. Tokens of a tile are of one sequence or of several.
template <int kWidth>
__global__ void __launch_bounds__(kThreads, 1) filter_scores(const Filter f) {
  using Shared = ScoresShared<kWidth>;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const auto tile_of = [](uint16_t* x, int rows) {
    return Tile{x, Shared::kRow, rows * Shared::kRow};
  };
  const int heads = static_cast<int>(f.a.heads);
  const int64_t t0 = f.first + int64_t{blockIdx.x} * kTokens, t_end = min(t0 + kTokens, f.end);
  const int64_t key0 = int64_t{blockIdx.y} * kKeys;  // within each sequence
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int own_t = warp / 4 * 32, own_k = warp % 4 * 32;
  const auto start = [&](int h) {
    copy<kTokens, kWidth>(f.q + ((t0 - f.first) * heads + h) * 2 * kWidth,
                          int64_t{heads} * 2 * kWidth, t_end - t0, shared.q[h % kStages]);
    if (threadIdx.x < kTokens) {  // rows past the end are not stored
      const int64_t t = min(t0 + threadIdx.x, t_end - 1);
      ptx::cp_async_4(&shared.w[h % kStages][threadIdx.x], f.a.w + t * heads + h);
    }
    ptx::cp_async_commit();
  };
  for (int64_t begin = t0, end; begin < t_end; begin = end) {
    const int64_t sequence = begin - f.position(begin);
    const auto own = [&](int64_t t) { return t - f.position(t) == sequence; };
    end = t_end;
    if (!own(t_end - 1)) {  // between the last of its tokens and the first of another's
      int64_t of_it = begin;
      for (end = t_end - 1; end - of_it > 1;) {
        const int64_t middle = (of_it + end) / 2;
        (own(middle) ? of_it : end) = middle;
      }
    }
    const int64_t last = f.position(end - 1);
    if (last < f.a.k || last < key0) continue;  // they take all of their keys, or see none of these
    __syncthreads();                            // what came before is read
    copy<kKeys, kWidth>(f.keys + (sequence + key0) * 2 * kWidth, 2 * kWidth, last + 1 - key0,
                        shared.keys);
    start(0);
    float score[2][2][2][4] = {};
    for (int h = 0; h < heads; ++h) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // head h is there for all, and the one before it is multiplied
      if (h + 1 < heads) start(h + 1);
      const Tile q = tile_of(shared.q[h % kStages], kTokens), keys = tile_of(shared.keys, kKeys);
      float dot[2][2][2][4] = {};
#pragma unroll
      for (int c = 0; c < kWidth; c += 16) {
        Factor<2> b[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) b[j] = right_rows<2>(keys, own_k + j * 16, c);
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          const Factor<2> a = left<2>(q, own_t + g * 16, c);
#pragma unroll
          for (int j = 0; j < 2; ++j) multiply<2>(dot[g][j], a, b[j]);
        }
      }
#pragma unroll
      for (int g = 0; g < 2; ++g) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float w = shared.w[h % kStages][own_t + g * 16 + r * 8 + lane / 4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) {
              float& to = score[g][j / 2][j % 2][e];
              to = fmaf(w, fmaxf(dot[g][j / 2][j % 2][e], 0.0f), to);
            }
          }
        }
      }
    }
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t t = t0 + own_t + g * 16 + r * 8 + lane / 4;
        if (t < begin || t >= end) continue;
        const int64_t visible = f.position(t);
        float* to = f.out + (t - f.first) * f.stride;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int64_t key = key0 + own_k + j * 8 + lane % 4 * 2 + e;
            if (key <= visible) to[key] = score[g][j / 2][j % 2][2 * r + e];
          }
        }
      }
    }
  }
}

// ---- what could decide

using B = topk_block::Sizes<kThreads>;
constexpr int kPiece = 2048, kBatch = 16, kOwn = 4;  // keys looked at, scored at once; of a thread
constexpr int kDotRow = kMostHeads + 1;

struct RefineShared {
  topk_block::Search<B> search;
  float w[kMostHeads], dot[kBatch * kDotRow], sum[kBatch * kGroups];
  int list[kPiece + kBatch], count;
};

__host__ __device__ inline int float_row(int64_t dim) {
  return static_cast<int>((dim + 3) / 4 * 4 + 4);
}

// Row r of a tile of floats <- `dim` values, then zeros up to fours, by a warp.
__device__ inline void load_row(const float* x, int dim, float* to) {
  for (int c = static_cast<int>(threadIdx.x) % 32; c < (dim + 3) / 4 * 4; c += 32) {
    to[c] = c < dim ? x[c] : 0;
  }
}

// The exact scores of `count` keys of the list's end, at most kBatch, to their places in `row`: in
// the order of indexer_train_scores.cu.
__device__ void score_again(const Filter& f, RefineShared& s, const float* q, float* keys,
                            int64_t sequence, int first, int count, float* row) {
  const int dim = static_cast<int>(f.a.dim), heads = static_cast<int>(f.a.heads);
  const int pitch = float_row(dim), warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();  // the list is whole, and the last batch done
  for (int i = warp; i < kBatch; i += kWarps) {
    const int key = s.list[first + min(i, count - 1)];
    load_row(f.a.keys + (sequence + key) * dim, dim, keys + i * pitch);
  }
  __syncthreads();
  for (int item = static_cast<int>(threadIdx.x); item < heads * (kBatch / kOwn); item += kThreads) {
    const int h = item % heads, own = item / heads * kOwn;
    float dot[kOwn] = {};
    for (int d = 0; d < dim; d += 4) {
      const float4 x = *reinterpret_cast<const float4*>(q + h * pitch + d);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const float4 k = *reinterpret_cast<const float4*>(keys + (own + j) * pitch + d);
        dot[j] = fmaf(x.x, k.x, dot[j]);
        dot[j] = fmaf(x.y, k.y, dot[j]);
        dot[j] = fmaf(x.z, k.z, dot[j]);
        dot[j] = fmaf(x.w, k.w, dot[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) s.dot[(own + j) * kDotRow + h] = dot[j];
  }
  __syncthreads();
  if (threadIdx.x < kBatch * kGroups) {
    const int key = static_cast<int>(threadIdx.x) / kGroups;
    float sum = 0;
    for (int h = static_cast<int>(threadIdx.x) % kGroups; h < heads; h += kGroups) {
      const float dot = s.dot[key * kDotRow + h];
      sum = fmaf(s.w[h], dot < 0 ? 0.0f : dot, sum);  // NaN stays
    }
    s.sum[threadIdx.x] = sum;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    const float* sum = s.sum + threadIdx.x * kGroups;
    float score = sum[0];
    for (int g = 1; g < kGroups; ++g) score += sum[g];
    row[s.list[first + static_cast<int>(threadIdx.x)]] = score;
  }
}

// The float that key_of makes `key` of; NaN for keys below that of -inf.
__device__ inline float value_of(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7FFFFFFFu : ~key);
}

// A block a token.
__global__ void __launch_bounds__(kThreads) filter_refine(const Filter f) {
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& s = *reinterpret_cast<RefineShared*>(bytes);
  const int dim = static_cast<int>(f.a.dim), heads = static_cast<int>(f.a.heads);
  const int pitch = float_row(dim), warp = static_cast<int>(threadIdx.x) / 32;
  auto* q = reinterpret_cast<float*>(bytes + (sizeof(RefineShared) + 15) / 16 * 16);
  float* keys = q + heads * pitch;
  const int64_t t = f.first + blockIdx.x, length = f.position(t) + 1;
  if (length <= f.a.k) return;
  float* row = f.out + int64_t{blockIdx.x} * f.stride;
  const topk_block::Cut cut = topk_block::choose([&](int64_t i, auto use) { use(key_of(row[i])); },
                                                 length, static_cast<uint32_t>(f.a.k), s.search);
  const float threshold = value_of(cut.cut), error = 2 * f.bound[blockIdx.x];
  const float low = threshold - error, high = threshold + error;
  for (int h = warp; h < heads; h += kWarps) {
    load_row(f.a.q + (t * heads + h) * dim, dim, q + h * pitch);
  }
  for (int h = static_cast<int>(threadIdx.x); h < heads; h += kThreads) {
    s.w[h] = f.a.w[t * heads + h];
  }
  if (threadIdx.x == 0) s.count = 0;
  const int64_t sequence = t + 1 - length;
  for (int64_t base = 0; base < length; base += kPiece) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPiece / kThreads; ++j) {
      const int64_t i = base + j * kThreads + threadIdx.x;
      if (i >= length) continue;
      const float x = row[i];
      if (x > high || x < low) continue;  // neither, if one of them is NaN
      s.list[atomicAdd(&s.count, 1)] = static_cast<int>(i);
    }
    __syncthreads();
    int count = s.count;
    const int least = base + kPiece < length ? kBatch : 1;  // the rest waits for others
    while (count >= least) {
      const int now = min(count, kBatch);
      count -= now;
      score_again(f, s, q, keys, sequence, count, now, row);
    }
    __syncthreads();
    if (threadIdx.x == 0) s.count = count;
  }
}

int64_t width_of(int64_t dim) { return dim <= 64 ? 64 : kMostDim; }

unsigned blocks(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

template <int kWidth>
void run(KernelContext& context, Filter f, int64_t longest) {
  const int64_t tokens = f.end - f.first;
  auto* q = static_cast<uint16_t*>(
      device_scratch(context, kQuerySlot, tokens * f.a.heads * 2 * kWidth * 2));
  f.q = q;
  filter_pack_queries<kWidth><<<blocks(tokens, kWarps), kThreads, 0, stream_of(context)>>>(f, q);
  check_launch("indexer_train_filter (pack)");
  constexpr auto kBytes = static_cast<int>(sizeof(ScoresShared<kWidth>));
  allow_shared(reinterpret_cast<const void*>(filter_scores<kWidth>), kBytes,
               "indexer_train_filter");
  filter_scores<kWidth><<<dim3(blocks(tokens, kTokens), blocks(longest, kKeys)), kThreads, kBytes,
                          stream_of(context)>>>(f);
  check_launch("indexer_train_filter (scores)");
  const auto bytes = static_cast<int>((sizeof(RefineShared) + 15) / 16 * 16 +
                                      (f.a.heads + kBatch) * float_row(f.a.dim) * sizeof(float));
  allow_shared(reinterpret_cast<const void*>(filter_refine), bytes, "indexer_train_filter");
  filter_refine<<<static_cast<unsigned>(tokens), kThreads, static_cast<size_t>(bytes),
                  stream_of(context)>>>(f);
  check_launch("indexer_train_filter (again)");
}

}  // namespace

bool indexer_train_filters(KernelContext& context, const IndexerSelectTrainArgs& a) {
  if (a.heads > kMostHeads || a.dim > kMostDim ||
      sizeof(ScoresShared<kMostDim>) > static_cast<size_t>(most_shared())) {
    return false;
  }
  if (!context.allowed("indexer_train_scores", "cuda_filter")) return false;
  // With fewer heads the exact scores cost less than what is around these.
  return a.heads >= 16 || !context.allowed("indexer_train_scores", "cuda");
}

void indexer_train_filter_keys(KernelContext& context, const IndexerSelectTrainArgs& a) {
  context.note("indexer_train_scores", "cuda_filter");
  const int64_t width = width_of(a.dim);
  auto* norm = static_cast<uint32_t*>(device_scratch(context, kBoundSlot, (a.tokens + 4) * 4));
  auto* keys = static_cast<uint16_t*>(device_scratch(context, kKeySlot, a.tokens * 2 * width * 2));
  context.device()->fill(norm, 0, 4);
  const auto kernel = width == 64 ? filter_pack_keys<64> : filter_pack_keys<kMostDim>;
  kernel<<<blocks(a.tokens, kWarps), kThreads, 0, stream_of(context)>>>(
      a.keys, a.tokens, static_cast<int>(a.dim), keys, norm);
  check_launch("indexer_train_filter (keys)");
}

void indexer_train_filter(KernelContext& context, const IndexerSelectTrainArgs& a,
                          const TrainScores& of, float* out, int64_t stride) {
  const int64_t width = width_of(a.dim);
  // As indexer_train_filter_keys asked for them: what it wrote is there.
  auto* norm = static_cast<uint32_t*>(device_scratch(context, kBoundSlot, (a.tokens + 4) * 4));
  auto* keys = static_cast<uint16_t*>(device_scratch(context, kKeySlot, a.tokens * 2 * width * 2));
  const Filter f{a,       of.first, of.first + of.tokens,
                 nullptr, keys,     reinterpret_cast<float*>(norm + 4),
                 norm,    out,      stride};
  width == 64 ? run<64>(context, f, of.longest) : run<kMostDim>(context, f, of.longest);
}

}  // namespace tamis
