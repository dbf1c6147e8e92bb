// indexer_kl_dense on CUDA in tiles of 64 queries by 64 keys, all sequences of a batch in a launch
// (kernels/mla_dense/flash_tiles.cuh). A group of query tiles goes through five kernels:
//
//   p       the heads' mean probability of a tile, from the rows' log sums that attention left
//   I       the index scores of a tile; with many heads in bf16 both by indexer_kl_wide.cuh
//   rows    kl of each query, and dI in the place of p
//   q       a block a head and query tile: the head's scores again, dq and dw
//   k       a block a key tile: every query tile and head in order, dk
//
// With a mask of the keys of each query all of that is over the masked keys, and tiles of keys
// without any are left out; p and I of such tiles are not written.
//
// p and I of a group are at most kMostPairs tiles, 256 MiB each, so memory grows with the tokens.
// No atomics. Bound by the tensor cores.
#include <algorithm>
#include <vector>

#include "kernels/indexer_kl/indexer_kl_wide.cuh"

namespace tamis {
namespace flash {
namespace {

// Of device_scratch; attention has 2 to 5.
constexpr int kTileSlot = 0, kScoreSlot = 1, kOutSlot = 2, kSumSlot = 3, kPackSlot = 5;
constexpr int kIndexSlot = 6, kListSlot = 7, kKeySlot = 4;
constexpr int64_t kMostPairs = 16384;

// Query tiles [tile, tile + tiles) of a sequence, and where their entries lie. A query tile has a
// pair for each key tile up to itself, a run a key tile for each that its last query tile sees.
struct Run {
  int32_t begin, tokens, tile, tiles, block, pair, key_block;
};
__host__ __device__ inline int64_t pair_of(int64_t pair, int64_t tile, int64_t before) {
  return pair + before * (tile + 1) + before * (before - 1) / 2;
}
struct Group {
  std::vector<Run> runs;
  int blocks = 0, pairs = 0, key_blocks = 0;
};
// Those of a launch.
struct Runs {
  static constexpr int kMost = 120;
  Run list[kMost];
};

__global__ void __launch_bounds__(kThreads)
    kl_lists(const __grid_constant__ Runs runs, const Lists lists) {
  const Run r = runs.list[blockIdx.x];
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = 0; i < r.tiles; ++i) {
    const int block = r.block + r.tiles - 1 - i, tile = r.tile + i;
    const auto pair = static_cast<int32_t>(pair_of(r.pair, r.tile, i));
    if (thread == 0) lists.queries[block] = {r.begin, r.tokens, tile, pair};
    for (int key = thread; key <= tile; key += kThreads) lists.pairs[pair + key] = {block, key};
  }
  const int end = r.tile + r.tiles;
  for (int key = thread; key < end; key += kThreads) {
    lists.keys[r.key_block + key] = {r.begin, r.tokens, key, r.tile, end, r.pair};
  }
}

// ---- p

template <int kQk, bool kExact>
__global__ void __launch_bounds__(kThreads) kl_probabilities(const Problem b, const Lists lists) {
  struct Step {
    Tile<kBlock, kQk, kExact> q, k;
  };
  extern __shared__ __align__(16) unsigned char space[];
  auto* steps = reinterpret_cast<Step*>(space);
  const Pair own = lists.pairs[blockIdx.x];
  const Rows r = rows_of(lists, own.block);
  const int key_tile = own.key_tile;
  if (!attends(b, r, key_tile)) return;
  const Sequence in = mla_sequence_at(b.attention, r.begin, r.tokens);
  const int64_t all = b.attention.tokens;
  const int q0 = r.tile * kBlock, k0 = key_tile * kBlock;
  const float scale = in.softmax_scale * kLog2e;
  Values mean = {};
  const auto start = [&](int h, int step) {
    if constexpr (kExact) {
      load_tile(queries(in, q0, h), steps[step].q);
      load_tile(keys(in, k0, h), steps[step].k);
    } else {
      copy_tile(b.q, h * all + r.token(q0), r.left(r.tile), steps[step].q);
      copy_tile(b.k, h * all + r.token(k0), r.left(key_tile), steps[step].k);
    }
  };
  const auto multiply = [&](int h, int step) {
    Values s = {};
    rows_by_rows<kN>(steps[step].q, static_cast<int>(threadIdx.x / 32) * 16, steps[step].k, s);
    float log_sum[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = q0 + row_in_tile(2 * i);
      if (row < in.tokens) log_sum[i] = b.log_sum[h * all + r.token(row)];
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        mean[n][e] += power<kExact>(fmaf(s[n][e], scale, -log_sum[e / 2]));
      }
    }
  };
  pipeline<kStages<kExact>>(0, static_cast<int>(in.heads), 1, itself, start, multiply);
  float* to = at_tile(b.p, r.pair + key_tile);
  const float heads = 1 / static_cast<float>(in.heads);
  const Seen seen(b, r, key_tile);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      to[(n * 4 + e) * kThreads] = seen(n, e) ? mean[n][e] * heads : 0;
    }
  }
}

// ---- I

template <int kDim, bool kExact>
struct Index {
  static __device__ void queries(const Problem& b, const Rows& r, int tile, int64_t head,
                                 Tile<kBlock, kDim, kExact>& to) {
    const int64_t token = r.token(tile * kBlock), row = b.x.heads * b.x.dim;
    if constexpr (kExact) {
      load_tile(source(b.x.q + token * row + head * b.x.dim, row, b.x.dim, r.left(tile)), to);
    } else {
      copy_tile(b.index_q, head * b.x.tokens + token, r.left(tile), to);
    }
  }
  static __device__ void keys(const Problem& b, const Rows& r, int tile,
                              Tile<kBlock, kDim, kExact>& to) {
    const int64_t token = r.token(tile * kBlock);
    if constexpr (kExact) {
      load_tile(source(b.x.k + token * b.x.dim, b.x.dim, b.x.dim, r.left(tile)), to);
    } else {
      copy_tile(b.index_k, token, r.left(tile), to);
    }
  }
};

// w of the query in row e / 2 * 8 of the thread; 0 past the last.
__device__ inline float weight_of(const Problem& b, const Rows& r, int e, int64_t head) {
  const int64_t row = r.tile * kBlock + row_in_tile(e);
  return row < r.tokens ? b.x.w[r.token(row) * b.x.heads + head] : 0;
}

template <int kDim, bool kExact>
__global__ void __launch_bounds__(kThreads) kl_scores(const Problem b, const Lists lists) {
  extern __shared__ __align__(16) unsigned char space[];
  auto& k = *reinterpret_cast<Tile<kBlock, kDim, kExact>*>(space);
  auto* q = &k + 1;
  const Pair own = lists.pairs[blockIdx.x];
  const Rows r = rows_of(lists, own.block);
  const int key_tile = own.key_tile;
  if (!attends(b, r, key_tile)) return;
  Index<kDim, kExact>::keys(b, r, key_tile, k);
  Values score = {};
  const auto start = [&](int head, int step) {
    Index<kDim, kExact>::queries(b, r, r.tile, head, q[step]);
  };
  const auto multiply = [&](int head, int step) {
    Values s = {};
    rows_by_rows<kN>(q[step], static_cast<int>(threadIdx.x / 32) * 16, k, s);
    const float w[2] = {weight_of(b, r, 0, head), weight_of(b, r, 2, head)};
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) score[n][e] = fmaf(w[e / 2], fmaxf(s[n][e], 0), score[n][e]);
    }
  };
  pipeline<kStages<kExact>>(0, static_cast<int>(b.x.heads), 1, itself, start, multiply);
  float* to = at_tile(b.score, r.pair + key_tile);
  const Seen seen(b, r, key_tile);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      to[(n * 4 + e) * kThreads] = seen(n, e) ? score[n][e] : -INFINITY;
    }
  }
}

// ---- rows

// Sum or maximum over the four threads of a row.
__device__ inline double quad_sum(double x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}
__device__ inline float quad_max(float x) {
  x = ptx::max_nan(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return ptx::max_nan(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__global__ void __launch_bounds__(kThreads) kl_rows(const Problem b, const Lists lists) {
  const Rows r = rows_of(lists, static_cast<int>(blockIdx.x));
  float top[2] = {-INFINITY, -INFINITY};
  for (int t = next_of(b, r, 0); t <= r.tile; t = next_of(b, r, t + 1)) {
    const float* score = at_tile(b.score, r.pair + t);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      top[i % 4 / 2] = ptx::max_nan(top[i % 4 / 2], score[i * kThreads]);
    }
  }
  top[0] = quad_max(top[0]);
  top[1] = quad_max(top[1]);
  double sum[2] = {}, cross[2] = {}, mass[2] = {};
  for (int t = next_of(b, r, 0); t <= r.tile; t = next_of(b, r, t + 1)) {
    const float *score = at_tile(b.score, r.pair + t), *p = at_tile(b.p, r.pair + t);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float x = score[i * kThreads], own = p[i * kThreads];
      sum[i % 4 / 2] += expf(x - top[i % 4 / 2]);
      mass[i % 4 / 2] += own;
      if (own != 0) cross[i % 4 / 2] += static_cast<double>(own) * (logf(own) - x);
    }
  }
  float log_sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const double log_of = static_cast<double>(top[i]) + log(quad_sum(sum[i]));
    const double kl = quad_sum(cross[i]) + quad_sum(mass[i]) * log_of;
    const int row = r.tile * kBlock + row_in_tile(2 * i);
    if (row < r.tokens && threadIdx.x % 4 == 0) b.x.kl[r.token(row)] = kl;
    log_sum[i] = static_cast<float>(log_of);
  }
  const auto scale = static_cast<float>(b.x.scale);
  for (int t = next_of(b, r, 0); t <= r.tile; t = next_of(b, r, t + 1)) {
    const float* score = at_tile(b.score, r.pair + t);
    float* p = at_tile(b.p, r.pair + t);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool here = r.tile * kBlock + row_in_tile(i % 4) < r.tokens;
      const float d = scale * (expf(score[i * kThreads] - log_sum[i % 4 / 2]) - p[i * kThreads]);
      p[i * kThreads] = here ? d : 0;
    }
  }
}

// ---- q

template <int kDim, bool kExact>
__global__ void __launch_bounds__(kThreads) kl_queries(const Problem b, const Lists lists) {
  extern __shared__ __align__(16) unsigned char space[];
  auto& q = *reinterpret_cast<Tile<kBlock, kDim, kExact>*>(space);
  auto* k = &q + 1;
  const Rows r = rows_of(lists, static_cast<int>(blockIdx.x));
  const int64_t head = blockIdx.y;
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  Index<kDim, kExact>::queries(b, r, r.tile, head, q);
  const float w[2] = {weight_of(b, r, 0, head), weight_of(b, r, 2, head)};
  float dq[kDim / 8][4] = {}, dw[2] = {};
  const auto start = [&](int t, int step) { Index<kDim, kExact>::keys(b, r, t, k[step]); };
  const auto multiply = [&](int t, int step) {
    Values s = {}, d_score;  // on its way while the scores are made
    const float* from = at_tile(b.p, r.pair + t);
#pragma unroll
    for (int i = 0; i < kEach; ++i) d_score[i / 4][i % 4] = from[i * kThreads];
    rows_by_rows<kN>(q, warp_row, k[step], s);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float d = d_score[n][e];
        dw[e / 2] = fmaf(d, fmaxf(s[n][e], 0), dw[e / 2]);
        s[n][e] = s[n][e] > 0 ? d * w[e / 2] : 0;
      }
    }
    by_columns(factor_of<kN, kExact>(s), k[step], dq);
  };
  const auto next = [&](int t) { return next_of(b, r, t); };
  pipeline<kStages<kExact>>(0, r.tile + 1, 1, next, start, multiply);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    dw[i] += __shfl_xor_sync(0xFFFFFFFFu, dw[i], 1);
    dw[i] += __shfl_xor_sync(0xFFFFFFFFu, dw[i], 2);
    const int row = r.tile * kBlock + row_in_tile(2 * i);
    if (row >= r.tokens) continue;
    const int64_t at = r.token(row) * b.x.heads + head;
    if (threadIdx.x % 4 == 0) b.x.dw[at] = dw[i];
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = column_in_tile(n, e);
        if (c < b.x.dim) b.x.dq[at * b.x.dim + c] = dq[n][2 * i + e];
      }
    }
  }
}

// ---- k

template <int kDim, bool kExact>
__global__ void __launch_bounds__(kThreads) kl_keys(const Problem b, const Lists lists) {
  struct Step {
    Tile<kBlock, kDim, kExact> q;
    float w[kBlock];
  };
  extern __shared__ __align__(16) unsigned char space[];
  auto& k = *reinterpret_cast<Tile<kBlock, kDim, kExact>*>(space);
  auto* steps = reinterpret_cast<Step*>(&k + 1);
  auto* d_scores = reinterpret_cast<float*>(steps + kStages<kExact>);  // [2][kValues]
  const KeyTile s = lists.keys[blockIdx.x];
  // A block has its part of the heads.
  const int key_tile = s.key_tile, end_tile = s.end, all_heads = static_cast<int>(b.x.heads);
  const auto part = static_cast<int>(blockIdx.y), parts = static_cast<int>(gridDim.y);
  const int head0 = all_heads * part / parts, heads = all_heads * (part + 1) / parts - head0;
  const Rows r{s.begin, s.tokens, key_tile, s.pair};
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  Index<kDim, kExact>::keys(b, r, key_tile, k);
  float dk[kDim / 8][4] = {};
  const int first = max(key_tile, s.tile);  // query tile that sees the keys
  int started = 0, multiplied = 0;          // query tiles so far: of d_scores they take turns
  const auto start = [&](int i, int step) {
    const int t = first + i / heads, head = head0 + i % heads;
    Index<kDim, kExact>::queries(b, r, t, head, steps[step].q);
    for (int row = static_cast<int>(threadIdx.x); row < kBlock; row += kThreads) {
      const bool here = row < r.left(t);
      steps[step].w[row] = here ? b.x.w[r.token(t * kBlock + row) * all_heads + head] : 0;
    }
    if (head > head0) return;
    const int64_t pair = pair_of(s.pair, s.tile, t - s.tile) + key_tile;
    float* to = d_scores + started++ % 2 * kValues;
    for (int v = static_cast<int>(threadIdx.x) * 4; v < kValues; v += kThreads * 4) {
      ptx::cp_async_16(to + v, b.p + pair * kValues + v);
    }
  };
  const auto multiply = [&](int i, int step) {
    Values a = {};  // keys by queries
    rows_by_rows<kN>(k, warp * 16, steps[step].q, a);
    const float* d_score = d_scores + multiplied % 2 * kValues;
    if (i % heads == heads - 1) ++multiplied;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Where the thread that made it left dI of this query and key.
        const int query = n * 8 + lane % 4 * 2 + e % 2, key = warp * 16 + lane / 4 + e / 2 * 8;
        const int value = key / 8 * 4 + query % 16 / 8 * 2 + key % 2;
        const int thread = query / 16 * 32 + query % 8 * 4 + key % 8 / 2;
        const float d = d_score[value * kThreads + thread] * steps[step].w[query];
        a[n][e] = a[n][e] > 0 ? d : 0;
      }
    }
    by_columns(factor_of<kN, kExact>(a), steps[step].q, dk);
  };
  const auto next = [&](int i) {
    int t = first + i / heads;
    if (i % heads != 0) return i;
    while (t < end_tile && !b.mask.has_tile(r.token(int64_t{t} * kBlock), key_tile)) ++t;
    return (t - first) * heads;
  };
  pipeline<kStages<kExact>>(0, (end_tile - first) * heads, 1, next, start, multiply);
  const bool add = key_tile < s.tile;  // an earlier group's queries saw them
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = key_tile * kBlock + row_in_tile(2 * i);
    if (row >= s.tokens) continue;
    float* to =
        (parts > 1 ? b.dk_parts + part * b.x.tokens * b.x.dim : b.x.dk) + r.token(row) * b.x.dim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = column_in_tile(n, e);
        if (c < b.x.dim) to[c] = add ? to[c] + dk[n][2 * i + e] : dk[n][2 * i + e];
      }
    }
  }
}

// dk from those of parts of the heads, in order.
__global__ void __launch_bounds__(kThreads)
    kl_add_parts(const float* x, int parts, int64_t values, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= values) return;
  float sum = x[i];
  for (int p = 1; p < parts; ++p) sum += x[p * values + i];
  to[i] = sum;
}

// ---- launches

// In how many parts kl_keys takes the heads: a long sequence's first keys meet all of its queries,
// and would be waited for.
int64_t key_parts(int64_t heads) { return heads >= 32 ? 4 : 1; }

// The lists of a group, written on the device.
Lists lists_of(KernelContext& context, const Group& group) {
  const auto bytes = [](int64_t n, size_t each) { return n * static_cast<int64_t>(each); };
  const int64_t queries = bytes(group.blocks, sizeof(QueryTile));
  const int64_t pairs = bytes(group.pairs, sizeof(Pair));
  auto* memory = static_cast<std::byte*>(device_scratch(
      context, kListSlot, queries + pairs + bytes(group.key_blocks, sizeof(KeyTile))));
  const Lists lists{reinterpret_cast<QueryTile*>(memory), reinterpret_cast<Pair*>(memory + queries),
                    reinterpret_cast<KeyTile*>(memory + queries + pairs)};
  for (size_t first = 0; first < group.runs.size(); first += Runs::kMost) {
    const size_t count = std::min<size_t>(Runs::kMost, group.runs.size() - first);
    Runs runs = {};
    std::copy_n(group.runs.begin() + static_cast<int64_t>(first), count, runs.list);
    start(context, kl_lists, dim3(static_cast<unsigned>(count)), 0, "indexer_kl (lists)", runs,
          lists);
  }
  return lists;
}

// Forced to "cuda_wide", "indexer_kl_tiles" takes two tiles by two for any number of heads.
bool takes_wide(KernelContext& context, int64_t heads, size_t shared) {
  constexpr int64_t kMany = 32;
  return shared <= static_cast<size_t>(most_shared()) &&
         context.allowed("indexer_kl_tiles", "cuda_wide") &&
         (heads >= kMany || !context.allowed("indexer_kl_tiles", "cuda"));
}

void start_wide(KernelContext& context, void (*kernel)(Problem, Lists, int), dim3 grid,
                size_t shared, const char* name, const Problem& b, const Lists& lists, int blocks) {
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(shared), name);
  kernel<<<grid, kWideThreads, shared, stream_of(context)>>>(b, lists, blocks);
  check_launch(name);
}

template <int kQk, int kDim, bool kExact>
void run(KernelContext& context, const Problem& b, const Group& group) {
  const Lists lists = lists_of(context, group);
  const auto blocks = static_cast<unsigned>(group.blocks);
  const dim3 pairs(static_cast<unsigned>(group.pairs));
  constexpr size_t kTile = sizeof(Tile<kBlock, kDim, kExact>);
  constexpr int kCount = kStages<kExact>;
  constexpr size_t kWideShared = std::max(4 * sizeof(WideTile<kQk>), 3 * sizeof(WideTile<kDim>));
  if (!kExact && takes_wide(context, b.attention.heads, kWideShared)) {
    context.note("indexer_kl_tiles", "cuda_wide");
    start_wide(context, kl_wide_probabilities<kQk>, pairs, 4 * sizeof(WideTile<kQk>),
               "indexer_kl (p)", b, lists, group.blocks);
    start_wide(context, kl_wide_scores<kDim>, pairs, 3 * sizeof(WideTile<kDim>),
               "indexer_kl (scores)", b, lists, group.blocks);
  } else {
    start(context, kl_probabilities<kQk, kExact>, pairs,
          2 * kCount * sizeof(Tile<kBlock, kQk, kExact>), "indexer_kl (p)", b, lists);
    start(context, kl_scores<kDim, kExact>, pairs, (1 + kCount) * kTile, "indexer_kl (scores)", b,
          lists);
  }
  start(context, kl_rows, dim3(blocks), 0, "indexer_kl (rows)", b, lists);
  start(context, kl_queries<kDim, kExact>, dim3(blocks, static_cast<unsigned>(b.x.heads)),
        (1 + kCount) * kTile, "indexer_kl (queries)", b, lists);
  start(context, kl_keys<kDim, kExact>,
        dim3(static_cast<unsigned>(group.key_blocks), static_cast<unsigned>(key_parts(b.x.heads))),
        kTile + kCount * (kTile + kBlock * sizeof(float)) + 2 * kValues * sizeof(float),
        "indexer_kl (keys)", b, lists);
}

// Calls use(group) for the query tiles of the sequences that begin at `begins`, the longest first.
template <typename Use>
void in_groups_of_tiles(std::span<const int64_t> begins, int64_t tokens, const Use& use) {
  struct Part {
    int64_t first, count;
  };
  std::vector<Part> parts;
  for_each_begin(begins, tokens, [&](int64_t first, int64_t count) {
    parts.push_back({first, count});
  });
  std::stable_sort(parts.begin(), parts.end(),
                   [](const Part& a, const Part& b) { return a.count > b.count; });
  Group g;
  const auto flush = [&] {
    if (!g.runs.empty()) use(g);
    g = {};
  };
  for (const Part& part : parts) {
    const int64_t tiles = (part.count + kBlock - 1) / kBlock;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (g.pairs > 0 && g.pairs + tile + 1 > kMostPairs) flush();
      if (tile == 0 || g.runs.empty()) {
        g.runs.push_back({static_cast<int32_t>(part.first), static_cast<int32_t>(part.count),
                          static_cast<int32_t>(tile), 0, g.blocks, g.pairs, g.key_blocks});
        g.key_blocks += static_cast<int>(tile);
      }
      ++g.runs.back().tiles;
      ++g.blocks;
      ++g.key_blocks;
      g.pairs += static_cast<int>(tile + 1);
    }
  }
  flush();
}

template <int kCols>
__nv_bfloat16* packed(KernelContext& context, const PackRows& rows, __nv_bfloat16* to) {
  PackRows p = rows;
  p.to = to;
  const int64_t threads = p.tokens * p.heads * (kCols / 8);
  pack_rows<kCols><<<blocks_of(threads, kThreads), kThreads, 0, stream_of(context)>>>(p);
  check_launch("indexer_kl (pack)");
  return to;
}

template <int kQk, int kDim, bool kExact>
void run_all(KernelContext& context, const IndexerKlDenseArgs<float>& a, Problem b) {
  const Sequence& in = a.attention;
  if constexpr (!kExact) {
    const int64_t qk = in.nope + in.rope, kv = in.nope + in.v_dim, rows = in.tokens * in.heads;
    constexpr int64_t kBytes = sizeof(__nv_bfloat16);
    auto* to =
        static_cast<__nv_bfloat16*>(device_scratch(context, kPackSlot, 2 * rows * kQk * kBytes));
    b.q = packed<kQk>(context, {in.q, qk, qk, nullptr, 0, in.tokens, in.heads, nullptr}, to);
    b.k = packed<kQk>(context, {in.kv, kv, in.nope, in.k_pe, in.rope, in.tokens, in.heads, nullptr},
                      to + rows * kQk);
    const int64_t heads = a.indexer.heads, dim = a.indexer.dim;
    to = static_cast<__nv_bfloat16*>(
        device_scratch(context, kIndexSlot, in.tokens * (heads + 1) * kDim * kBytes));
    b.index_q =
        packed<kDim>(context, {a.indexer.q, dim, dim, nullptr, 0, in.tokens, heads, nullptr}, to);
    b.index_k = packed<kDim>(context, {a.indexer.k, dim, dim, nullptr, 0, in.tokens, 1, nullptr},
                             to + in.tokens * heads * kDim);
  }
  const int64_t parts = key_parts(a.indexer.heads), values = in.tokens * a.indexer.dim;
  if (parts > 1) {
    b.dk_parts =
        static_cast<float*>(device_scratch(context, kKeySlot, parts * values * int64_t{4}));
  }
  in_groups_of_tiles(a.begins, in.tokens,
                     [&](const Group& g) { run<kQk, kDim, kExact>(context, b, g); });
  if (parts > 1) {
    start(context, kl_add_parts, dim3(blocks_of(values, kThreads)), 0, "indexer_kl (dk)",
          static_cast<const float*>(b.dk_parts), static_cast<int>(parts), values, a.indexer.dk);
  }
}

template <int kQk, bool kExact>
void by_dim(KernelContext& context, const IndexerKlDenseArgs<float>& a, const Problem& b) {
  if (a.indexer.dim <= 32) return run_all<kQk, 32, kExact>(context, a, b);
  if (a.indexer.dim <= 64) return run_all<kQk, 64, kExact>(context, a, b);
  run_all<kQk, 128, kExact>(context, a, b);
}

template <bool kExact>
void by_attention(KernelContext& context, const IndexerKlDenseArgs<float>& a, const Problem& b) {
  const int64_t qk = a.attention.nope + a.attention.rope;
  if (qk <= 48) return by_dim<48, kExact>(context, a, b);
  if (qk <= 96) return by_dim<96, kExact>(context, a, b);
  by_dim<192, kExact>(context, a, b);
}

}  // namespace
}  // namespace flash

bool indexer_kl_flash_supports(const IndexerKlDenseArgs<float>& a) {
  return mla_flash_supports(a.attention) && a.indexer.dim <= 128;
}

void indexer_kl_dense_flash(KernelContext& context, const IndexerKlDenseArgs<float>& a) {
  const MlaSequence<float>& in = a.attention;
  if (in.tokens == 0) return;
  const auto floats = [&](int slot, int64_t count) {
    return static_cast<float*>(device_scratch(context, slot, count * int64_t{sizeof(float)}));
  };
  flash::Problem b{a.indexer, in,      a.log_sum, nullptr, nullptr,
                   nullptr,   nullptr, nullptr,   nullptr, a.selected};
  if (b.log_sum == nullptr) {
    float* sums = floats(flash::kSumSlot, in.tokens * in.heads);
    float* out = floats(flash::kOutSlot, in.tokens * in.heads * in.v_dim);
    mla_dense_train_flash(context, {in, out, a.begins, sums, a.selected});
    b.log_sum = sums;
  }
  int64_t pairs = 0;
  flash::in_groups_of_tiles(a.begins, in.tokens, [&](const flash::Group& g) {
    pairs = std::max<int64_t>(pairs, g.pairs);
  });
  b.p = floats(flash::kTileSlot, pairs * flash::kValues);
  b.score = floats(flash::kScoreSlot, pairs * flash::kValues);
  context.allowed("matmul", "cuda") ? flash::by_attention<true>(context, a, b)
                                    : flash::by_attention<false>(context, a, b);
}

}  // namespace tamis
