// matmul with factors rounded to bf16, once: a float32 factor is rounded to rows of whole 16-byte
// chunks in scratch memory, and every tile reads it from there; factors that the caller has in bf16
// are read where they are.
//
// A block of 4 warps computes a tile of C of 128 or 64 rows and columns, a warp a quarter of it by
// mma m16n8k16. Tiles of the factors come to shared memory by asynchronous copies, kStages steps of
// 64 inner indices at a time, in the layout that they have: what lies side by side along the inner
// index is read with ldmatrix, what lies side by side along rows of A or columns of B with its
// transposing form. Chunks of a row are exchanged (chunk ^ row % 8), so that neither meets a bank
// twice. A tile of C goes through shared memory to whole lines of memory. Bound by L2 and, for
// short inner lengths, by writing C.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/matmul/matmul_parts.cuh"
#include "kernels/rope/rope_pair.cuh"

namespace tamis {
namespace tiled {
namespace {

constexpr int kStep = 64, kStages = 3, kPackedThreads = 128;
constexpr int kChunk = 8;       // bf16 values of 16 bytes
constexpr int kPackedSlot = 2;  // of device_scratch: rounded factors
// Bytes of rounded factors of one launch, unless a single product has more.
constexpr int64_t kMostPacked = int64_t{1} << 30;

// ---- rounding

struct Packing {
  const float* from;
  int64_t from_row, from_group;  // strides
  uint16_t* to;                  // [groups, rows, chunks * kChunk]
  int64_t rows, width;           // of a group
  uint32_t chunks;               // of a row
  uint32_t all;                  // chunks of all groups
  bool wide;                     // rows of `from` are whole chunks on 16 bytes
};

constexpr int kMostPackings = 2 * kMost;

struct Packings {
  Packing list[kMostPackings];
  int count = 0;
};

// A thread a chunk, kAhead of them at a time; blockIdx.y is the factor. Past a row's width are
// zeros.
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ Packings packings) {
  constexpr int kAhead = 4;
  const Packing& p = packings.list[blockIdx.y];
  const auto rows = static_cast<uint32_t>(p.rows);
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t first = blockIdx.x * kThreads + threadIdx.x; first < p.all;
       first += kAhead * step) {
    float v[kAhead][kChunk];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t i = first + j * step;
      if (i >= p.all) break;
      const uint32_t line = i / p.chunks, column = i % p.chunks * kChunk;
      const float* x = p.from + line / rows * p.from_group + line % rows * p.from_row + column;
      if (p.wide) {
        const float4 low = *reinterpret_cast<const float4*>(x);
        const float4 high = *reinterpret_cast<const float4*>(x + 4);
        v[j][0] = low.x, v[j][1] = low.y, v[j][2] = low.z, v[j][3] = low.w;
        v[j][4] = high.x, v[j][5] = high.y, v[j][6] = high.z, v[j][7] = high.w;
      } else {
#pragma unroll
        for (int e = 0; e < kChunk; ++e) v[j][e] = column + e < p.width ? x[e] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t i = first + j * step;
      if (i >= p.all) break;
      reinterpret_cast<uint4*>(p.to)[i] =
          make_uint4(ptx::pack_bf16(v[j][0], v[j][1]), ptx::pack_bf16(v[j][2], v[j][3]),
                     ptx::pack_bf16(v[j][4], v[j][5]), ptx::pack_bf16(v[j][6], v[j][7]));
    }
  }
}

// ---- products

// A side's tile of one step: rows of chunks.
template <bool kAlong, int kLines>
struct Side {
  static constexpr int kRows = kAlong ? kLines : kStep;
  static constexpr int kChunks = (kAlong ? kStep : kLines) / kChunk;
  static constexpr int kRowsAtOnce = kPackedThreads / kChunks;
  uint4 chunks[kRows * kChunks];

  __device__ static int place(int row, int chunk) { return row * kChunks + (chunk ^ row % 8); }

  // Step k of a side whose tile begins at `from`: `lines` and `inner` of it are there.
  __device__ void copy(const uint16_t* from, int64_t stride, int lines, int inner, int k) {
    const int first = static_cast<int>(threadIdx.x) / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    const uint16_t* x =
        from + (kAlong ? first * stride + k : (k + first) * stride) + chunk * kChunk;
    const int rows = kAlong ? lines : inner - k;
    const bool column = chunk * kChunk < (kAlong ? inner - k : lines);
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      const bool here = column && first + i * kRowsAtOnce < rows;
      ptx::cp_async_16(&chunks[place(first, chunk) + i * kRowsAtOnce * kChunks],
                       here ? x + i * kRowsAtOnce * stride : from, here);
    }
  }

  // Four 8x8 matrices; `line` and `inner8`, in chunks, are where this lane's one begins.
  __device__ void load(int line, int inner8, uint32_t (&r)[4]) const {
    const int i = static_cast<int>(threadIdx.x) % 8;
    if constexpr (kAlong) {
      ptx::ldmatrix_x4(r, &chunks[place(line + i, inner8)]);
    } else {
      ptx::ldmatrix_x4_trans(r, &chunks[place(inner8 * 8 + i, line / kChunk)]);
    }
  }
};

template <bool kA, bool kB, int kM, int kN>
struct Stage {
  Side<kA, kM> a;
  Side<kB, kN> b;
};

// Floats from row to row of a warp's part of C in shared memory: pairs of a fragment meet no bank
// twice.
template <int kN>
constexpr int kOutPitch = kN / 2 + 8;

// Where four neighbours from column `col` on of rows of C go. p may be a piece of `whole`, which
// has the rest of what is asked for and stays in constant memory.
struct Four {
  float* c;
  const float* start;  // what is added to, or null
  uint16_t* bits;      // null: c
  int64_t stride;
  const float *cos, *sin;  // of row 0's first pair; null: not turned
  int64_t half;
  int left;    // columns from `col` on
  bool whole;  // they are written at once

  __device__ Four(const MatmulArgs<float>& p, const MatmulArgs<float>& all, int64_t col)
      : c(p.c + col),
        start(p.accumulate         ? p.c + col
              : all.add != nullptr ? all.add + col
                                   : nullptr),
        bits(all.c_bf16 != nullptr ? all.c_bf16 + col : nullptr),
        stride(p.c_row),
        cos(nullptr),
        sin(nullptr),
        half(all.turned.half),
        left(static_cast<int>(min(p.n - col, int64_t{4}))) {
    const auto at = bits != nullptr
                        ? reinterpret_cast<uintptr_t>(bits) * 2
                        : reinterpret_cast<uintptr_t>(c) | reinterpret_cast<uintptr_t>(start);
    whole = left == 4 && stride % 4 == 0 && at % sizeof(float4) == 0;
    const TurnedColumns<float>& turned = all.turned;
    if (turned.cos == nullptr) return;
    const int64_t in_head = static_cast<uint32_t>(col) % static_cast<uint32_t>(turned.width);
    const int64_t pair = (in_head - turned.first) / 2;
    if (in_head < turned.first || pair >= half) return;
    cos = turned.cos + pair;
    sin = turned.sin + pair;
  }

  __device__ void write(int64_t row, float4 v) const {
    if (bits != nullptr) {
      if (cos != nullptr) {
        const int64_t of = row * half;
        const RopePair low = rotated({v.x, v.y}, cos[of], sin[of]);
        const RopePair high = rotated({v.z, v.w}, cos[of + 1], sin[of + 1]);
        v = make_float4(low.first, low.second, high.first, high.second);
      }
      const uint2 pairs = make_uint2(ptx::pack_bf16(v.x, v.y), ptx::pack_bf16(v.z, v.w));
      uint16_t* to = bits + row * stride;
      if (whole) {
        *reinterpret_cast<uint2*>(to) = pairs;
        return;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t pair = e < 2 ? pairs.x : pairs.y;
        if (e < left) to[e] = static_cast<uint16_t>(pair >> (e % 2 * 16));
      }
      return;
    }
    float* to = c + row * stride;
    const float* from = start + row * stride;
    if (whole) {
      if (start != nullptr) {
        const float4 old = *reinterpret_cast<const float4*>(from);
        v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
      }
      *reinterpret_cast<float4*>(to) = v;
      return;
    }
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (e < left) to[e] = start != nullptr ? from[e] + values[e] : values[e];
    }
  }
};

// A warp's part of C, [rows, columns] from shared memory to its place.
template <int kRows, int kColumns>
__device__ inline void write_part(const MatmulArgs<float>& p, const MatmulArgs<float>& all,
                                  const float* from, int pitch, int64_t row, int64_t col) {
  constexpr int kLanes = kColumns / 4;  // of a row
  const int lane = static_cast<int>(threadIdx.x) % 32, at = lane % kLanes * 4;
  if (col + at >= p.n) return;
  const Four four(p, all, col + at);
#pragma unroll 4
  for (int i = lane / kLanes; i < kRows; i += 32 / kLanes) {
    if (row + i >= p.m) return;
    four.write(row + i, *reinterpret_cast<const float4*>(from + i * pitch + at));
  }
}

template <bool kA, bool kB, int kM, int kN>
__global__ void __launch_bounds__(kPackedThreads, 2)
    matmul_packed_kernel(const __grid_constant__ Products products) {
  constexpr int kRowTiles = kM / 32, kColPairs = kN / 32;  // of a warp: 16 rows, 16 columns each
  extern __shared__ __align__(16) unsigned char space[];
  auto* stages = reinterpret_cast<Stage<kA, kB, kM, kN>*>(space);
  Work w;
  if (!find_work<kM, kN>(products, w)) return;
  const MatmulArgs<float>& p = w.p;
  const uint16_t* a = p.a_bf16 + w.row * p.a_row;
  const uint16_t* b = p.b_bf16 + w.col * p.b_col;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row = warp / 2 * (kM / 2), col = warp % 2 * (kN / 2), j = lane / 8;
  const auto inner = static_cast<int>(p.inner);
  const auto lines_a = static_cast<int>(min(p.m - w.row, int64_t{kM}));
  const auto lines_b = static_cast<int>(min(p.n - w.col, int64_t{kN}));
  const auto copy = [&](int k, int stage) {
    if (k < inner) {
      stages[stage].a.copy(a, kA ? p.a_row : p.a_col, lines_a, inner, k);
      stages[stage].b.copy(b, kB ? p.b_col : p.b_row, lines_b, inner, k);
    }
    ptx::cp_async_commit();
  };
  uint32_t x[2][kRowTiles][4], y[2][kColPairs][4];
  // The fragments of 16 inner indices; matrices of A lie down first, those of B across.
  const auto load = [&](const Stage<kA, kB, kM, kN>& s, int k16, int to) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      s.a.load(row + i * 16 + j % 2 * 8, k16 * 2 + j / 2, x[to][i]);
    }
#pragma unroll
    for (int i = 0; i < kColPairs; ++i) {
      s.b.load(col + i * 16 + j / 2 * 8, k16 * 2 + j % 2, y[to][i]);
    }
  };
  float sum[kRowTiles][2 * kColPairs][4] = {};
#pragma unroll
  for (int s = 0; s + 1 < kStages; ++s) copy(s * kStep, s);
  int stage = 0;
  for (int k = 0; k < inner; k += kStep, stage = stage + 1 < kStages ? stage + 1 : 0) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // this step is there, and the one before it has been multiplied
    load(stages[stage], 0, 0);
    copy(k + (kStages - 1) * kStep, stage > 0 ? stage - 1 : kStages - 1);
#pragma unroll
    for (int k16 = 0; k16 < kStep / 16; ++k16) {
      const int own = k16 % 2;
      if (k16 + 1 < kStep / 16) load(stages[stage], k16 + 1, own ^ 1);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 2 * kColPairs; ++c) {
          mma_bf16(sum[i][c], x[own][i], y[own][c / 2][c % 2 * 2], y[own][c / 2][c % 2 * 2 + 1]);
        }
      }
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // nobody reads the stages any more
  float* part = reinterpret_cast<float*>(space) + warp * (kM / 2) * kOutPitch<kN>;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int c = 0; c < 2 * kColPairs; ++c) {
      float* to = part + (i * 16 + lane / 4) * kOutPitch<kN> + c * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sum[i][c][0], sum[i][c][1]);
      *reinterpret_cast<float2*>(to + 8 * kOutPitch<kN>) = make_float2(sum[i][c][2], sum[i][c][3]);
    }
  }
  __syncwarp();
  write_part<kM / 2, kN / 2>(p, products.list[w.product].args.all, part, kOutPitch<kN>, w.row + row,
                             w.col + col);
}

template <bool kA, bool kB, int kM, int kN>
void launch_tile(KernelContext& context, Products& products) {
  const auto kernel = matmul_packed_kernel<kA, kB, kM, kN>;
  constexpr int kShared = kStages * sizeof(Stage<kA, kB, kM, kN>);
  static_assert(kShared >= 2 * kM * kOutPitch<kN> * static_cast<int>(sizeof(float)));
  allow_shared(reinterpret_cast<const void*>(kernel), kShared, "matmul");
  launch<kM, kN>(context, products, kernel, kPackedThreads, kShared);
}

template <bool kA, bool kB>
void launch_tiles(KernelContext& context, Products& products, const Bf16Kind& kind) {
  if (kind.wide_m) {
    kind.wide_n ? launch_tile<kA, kB, 128, 128>(context, products)
                : launch_tile<kA, kB, 128, 64>(context, products);
  } else {
    kind.wide_n ? launch_tile<kA, kB, 64, 128>(context, products)
                : launch_tile<kA, kB, 64, 64>(context, products);
  }
}

// ---- which factors are rounded

// A factor as it lies: `rows` rows of `width` values side by side in each of `groups`.
struct Factor {
  const float* data;
  int64_t row, group;  // strides
  int64_t rows, width, groups;
  int64_t pitch() const { return tiles(width, kChunk) * kChunk; }
  int64_t values() const { return groups * rows * pitch(); }
  bool operator==(const Factor&) const = default;
};

Factor factor_a(const GroupedMatmulArgs<float>& args, bool along) {
  const MatmulArgs<float>& p = args.all;
  return along ? Factor{p.a, p.a_row, 0, p.m, p.inner, 1}
               : Factor{p.a, p.a_col, 0, p.inner, p.m, 1};
}

Factor factor_b(const GroupedMatmulArgs<float>& args, bool along) {
  const MatmulArgs<float>& p = args.all;
  const bool many = args.groups > 0 && args.over == GroupedOver::kRows;
  const int64_t group = many ? args.group_stride : 0, groups = many ? args.groups : 1;
  return along ? Factor{p.b, p.b_col, group, p.n, p.inner, groups}
               : Factor{p.b, p.b_row, group, p.inner, p.n, groups};
}

// What the caller rounded can be read in place if its rows are whole chunks.
bool readable(const uint16_t* x, const Factor& f) {
  return x != nullptr && reinterpret_cast<uintptr_t>(x) % 16 == 0 && f.row % kChunk == 0 &&
         f.group % kChunk == 0 && f.width % kChunk == 0;
}

// The factors of one launch, each rounded once.
class Rounded {
 public:
  // Where `factor` will be, in values from the start of the scratch memory.
  int64_t add(const Factor& factor) {
    for (size_t i = 0; i < list_.size(); ++i) {
      if (list_[i] == factor) return at_[i];
    }
    if (factor.data == nullptr && factor.values() > 0) {
      throw UsageError("matmul: a factor is given neither in float32 nor in whole chunks of bf16");
    }
    list_.push_back(factor);
    at_.push_back(values_);
    values_ += factor.values();
    return at_.back();
  }
  int64_t bytes() const { return values_ * static_cast<int64_t>(sizeof(uint16_t)); }

  // Starts rounding; returns the scratch memory.
  uint16_t* run(KernelContext& context) const {
    if (list_.empty()) return nullptr;
    auto* to = static_cast<uint16_t*>(device_scratch(context, kPackedSlot, bytes()));
    Packings packings;
    int64_t most = 0;
    for (size_t i = 0; i < list_.size(); ++i) {
      const Factor& f = list_[i];
      const bool wide = f.width % kChunk == 0 && f.row % 4 == 0 && f.group % 4 == 0 &&
                        reinterpret_cast<uintptr_t>(f.data) % sizeof(float4) == 0;
      const int64_t all = f.values() / kChunk;
      packings.list[packings.count++] = {f.data,
                                         f.row,
                                         f.group,
                                         to + at_[i],
                                         f.rows,
                                         f.width,
                                         static_cast<uint32_t>(f.pitch() / kChunk),
                                         static_cast<uint32_t>(all),
                                         wide};
      most = std::max(most, all);
    }
    constexpr int64_t kMostBlocks = 1 << 12;  // a thread goes on with later chunks
    const dim3 grid(static_cast<unsigned>(std::min(kMostBlocks, tiles(most, kThreads))),
                    static_cast<unsigned>(packings.count));
    if (most > 0) {
      pack_kernel<<<grid, kThreads, 0, stream_of(context)>>>(packings);
      check_launch("matmul (rounding)");
    }
    return to;
  }

 private:
  std::vector<Factor> list_;
  std::vector<int64_t> at_;
  int64_t values_ = 0;
};

struct Placed {
  int64_t a = -1, b = -1;  // in the scratch memory; -1: where the caller has it
};

// One launch's products of a kind.
void launch_kind(KernelContext& context, std::span<const GroupedMatmulArgs<float>> list,
                 const Bf16Kind& kind) {
  Products products;
  for (const GroupedMatmulArgs<float>& args : list) {
    if (bf16_kind(args) == kind) products.list[products.count++] = {args};
  }
  if (products.count == 0) return;
  if (kind.a_along) {
    kind.b_along ? launch_tiles<true, true>(context, products, kind)
                 : launch_tiles<true, false>(context, products, kind);
  } else {
    kind.b_along ? launch_tiles<false, true>(context, products, kind)
                 : launch_tiles<false, false>(context, products, kind);
  }
}

// Rounds the factors of `list`, at most kMost products, and multiplies.
void round_and_multiply(KernelContext& context, std::vector<GroupedMatmulArgs<float>>& list,
                        const Rounded& rounded, const std::vector<Placed>& placed) {
  const uint16_t* memory = rounded.run(context);
  for (size_t i = 0; i < list.size(); ++i) {
    MatmulArgs<float>& p = list[i].all;
    const bool a_along = p.a_col == 1, b_along = p.b_row == 1;
    const Factor a = factor_a(list[i], a_along), b = factor_b(list[i], b_along);
    if (placed[i].a >= 0) {
      p.a_bf16 = memory + placed[i].a;
      (a_along ? p.a_row : p.a_col) = a.pitch();
    }
    if (placed[i].b >= 0) {
      p.b_bf16 = memory + placed[i].b;
      (b_along ? p.b_col : p.b_row) = b.pitch();
      if (list[i].over == GroupedOver::kRows) list[i].group_stride = b.rows * b.pitch();
    }
  }
  for (int bits = 0; bits < 16; ++bits) {
    const Bf16Kind kind{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
    launch_kind(context, list, kind);
  }
}

}  // namespace

Bf16Kind bf16_kind(const GroupedMatmulArgs<float>& args) {
  const MatmulArgs<float>& p = args.all;
  // Wide tiles unless they would be a quarter empty.
  const auto wide = [](int64_t n) { return n > 64 && tiles(n, 128) * 128 * 3 < n * 4; };
  return {p.a_col == 1, p.b_row == 1, wide(p.m), wide(p.n)};
}

bool packs(const GroupedMatmulArgs<float>& args) {
  const MatmulArgs<float>& p = args.all;
  const bool a_along = p.a_col == 1, b_along = p.b_row == 1;
  if (p.m < kNarrowProduct || p.n < kNarrowProduct) return false;
  if ((!a_along && p.a_row != 1) || (!b_along && p.b_col != 1)) return false;
  // A group begins at any row or inner index: in the middle of a chunk where those are side by
  // side.
  if (args.groups > 0 && args.over == GroupedOver::kInner && (a_along || b_along)) return false;
  if (args.groups > 0 && args.over == GroupedOver::kRows && !a_along) return false;
  constexpr int64_t kMostValues = int64_t{1} << 34;
  if (p.inner > INT32_MAX - kStages * kStep) return false;
  return factor_a(args, a_along).values() < kMostValues &&
         factor_b(args, b_along).values() < kMostValues;
}

void multiply_packed(KernelContext& context, std::span<const GroupedMatmulArgs<float>> args) {
  size_t next = 0;
  while (next < args.size()) {
    std::vector<GroupedMatmulArgs<float>> batch;
    std::vector<Placed> placed;
    Rounded rounded;
    while (next < args.size() && batch.size() < kMost &&
           (batch.empty() || rounded.bytes() < kMostPacked)) {
      const GroupedMatmulArgs<float>& one = args[next++];
      const Factor a = factor_a(one, one.all.a_col == 1), b = factor_b(one, one.all.b_row == 1);
      Placed where;
      if (!readable(one.all.a_bf16, a)) where.a = rounded.add(a);
      if (!readable(one.all.b_bf16, b)) where.b = rounded.add(b);
      batch.push_back(one);
      placed.push_back(where);
    }
    round_and_multiply(context, batch, rounded, placed);
  }
}

}  // namespace tiled
}  // namespace tamis
