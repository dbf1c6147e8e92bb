// Products of codes: C[i, j] (+)= sum over blocks k of sa[i, k] sb[j, k] (A[i, k] . B[j, k]).
//
// Two warpgroups compute a tile of 128 x kN, 64 rows each, by wgmma from shared memory, one block
// of 128 inner indices a step: its sums, from zero, are scaled and added to the totals. Codes come
// by asynchronous copies, some steps on their way: a line of a step is a row of 128 bytes, its
// 16-byte chunks exchanged (chunk ^ row % 8) as wgmma wants them. Products over inner are cut into
// pieces whose sums go to scratch memory and are added in order. Tiles of 64 columns, two blocks of
// threads on a multiprocessor, are for few steps, bound by writing C; those of 128 for many.
#include <algorithm>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/fp8_products/fp8_products_impl.h"
#include "kernels/fp8_round/fp8_blocks.cuh"

namespace tamis::fp8 {
namespace {

constexpr int kChunks = kBlock / 16, kGroupRows = 64;  // rows of a warpgroup
constexpr int kPiecesSlot = 1;                         // of device_scratch
constexpr int64_t kGroupChunk = 8;                     // blocks of a piece of a group
constexpr int64_t kFill = 2 * 132;  // blocks of threads that a launch should have
constexpr int64_t kShortestChunk = 4;
constexpr int64_t kManySteps = 12;  // from so many on tiles are wide

template <int kN>
struct Config {
  static constexpr int kStages = kN == 64 ? 4 : 6, kBlocksAtOnce = kN == 64 ? 2 : 1;
  static constexpr int kABytes = kBlock * kBlock, kStageBytes = kABytes + kN * kBlock;
  static constexpr int kShared = kStages * kStageBytes + 1024;  // to begin at a multiple of 1,024
};

// d [64, kN] = or += a [64, 32] b [32, kN] of codes in shared memory, as wgmma.cuh has b.
template <int kN>
__device__ inline void wgmma_e4m3(float (&d)[kN / 2], uint64_t a, uint64_t b, bool keep);

// clang-format off
#define TAMIS_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
  "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
template <>
__device__ inline void wgmma_e4m3<64>(float (&d)[32], uint64_t a, uint64_t b, bool keep) {
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "%32, %33, keep, 1, 1;\n}\n"
               : TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24)
               : "l"(a), "l"(b), "r"(static_cast<int>(keep)));
}
template <>
__device__ inline void wgmma_e4m3<128>(float (&d)[64], uint64_t a, uint64_t b, bool keep) {
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "%64, %65, keep, 1, 1;\n}\n"
               : TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40),
                 TAMIS_D8(48), TAMIS_D8(56)
               : "l"(a), "l"(b), "r"(static_cast<int>(keep)));
}
#undef TAMIS_D8
// clang-format on

// What asynchronous copies of this thread wrote becomes visible to wgmma.
__device__ inline void fence_copies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// How a product is launched: pieces of `chunk` blocks over inner.
struct Launch {
  Product p;
  int64_t chunk = 0;
  float* pieces = nullptr;  // [pieces][m][n]; null: straight to C
};

// What a block of threads computes.
struct Work {
  const uint8_t *a, *b;              // the tile's first lines, in the first block
  const float *a_scales, *b_scales;  // of that block
  int64_t a_line, b_line;            // the first lines
  int rows, columns, blocks;         // that are there
  float* c;
  int64_t c_row;
  bool add;
};

template <int kN>
__device__ inline bool find_work(const Launch& l, Work& w) {
  const Product& p = l.p;
  const int64_t column = int64_t{blockIdx.x} * kN;
  w.b_line = column;
  w.columns = static_cast<int>(min(p.n - column, int64_t{kN}));
  w.a_scales = p.a.scales;
  w.b = p.b.codes + column * p.b.pitch;
  w.b_scales = p.b.scales;
  GroupPart part{};
  if (!p.over_inner) {
    if (!find_part(p.offsets, p.groups, p.rows, kBlock, blockIdx.y, part)) return false;
    w.a_line = part.begin + part.part * kBlock;
    w.rows = static_cast<int>(min(part.end - w.a_line, int64_t{kBlock}));
    w.a = p.a.codes + w.a_line * p.a.pitch;
    w.b += part.group * p.b.group_codes;
    w.b_scales += part.group * p.b.group_scales;
    w.blocks = static_cast<int>(p.blocks);
    w.c = p.c + w.a_line * p.c_row + column;
    w.c_row = p.c_row;
    w.add = p.add;
    return true;
  }
  if (!find_part(p.offsets, p.groups, p.rows, l.chunk * kBlock, blockIdx.z, part)) return false;
  w.a_line = int64_t{blockIdx.y} * kBlock;
  w.rows = static_cast<int>(min(p.m - w.a_line, int64_t{kBlock}));
  const int64_t own = (part.end - part.begin + kBlock - 1) / kBlock;
  const int64_t begin = part.part * l.chunk, first = part.blocks + begin;
  w.blocks = static_cast<int>(min(l.chunk, own - begin));
  w.a = p.a.codes + w.a_line * p.a.pitch + first * kBlock;
  w.b += first * kBlock;
  w.a_scales += first * p.a.scale_pitch;
  w.b_scales += first * p.b.scale_pitch;
  if (l.pieces == nullptr) {
    w.c = p.c + w.a_line * p.c_row + column;
    w.c_row = p.c_row;
    w.add = p.add;
  } else {
    w.c = l.pieces + (blockIdx.z * p.m + w.a_line) * p.n + column;
    w.c_row = p.n;
    w.add = false;
  }
  return true;
}

template <int kLines>
__device__ inline void copy_side(const uint8_t* from, int64_t pitch, int lines, uint8_t* to) {
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll
  for (int i = 0; i < kLines * kChunks / kThreads; ++i) {
    const int line = static_cast<int>(threadIdx.x) / kChunks + i * (kThreads / kChunks);
    const bool here = line < lines;
    ptx::cp_async_16(to + line * kBlock + (chunk ^ line % 8) * 16,
                     here ? from + line * pitch + chunk * 16 : from, here);
  }
}

__device__ inline void write_pair(float* c, bool add, bool first, bool second, float x, float y) {
  if (first && second && reinterpret_cast<uintptr_t>(c) % sizeof(float2) == 0) {
    auto* pair = reinterpret_cast<float2*>(c);
    const float2 old = add ? *pair : make_float2(0, 0);
    *pair = make_float2(old.x + x, old.y + y);
    return;
  }
  if (first) c[0] = add ? c[0] + x : x;
  if (second) c[1] = add ? c[1] + y : y;
}

// Scales of the columns that a lane has in a block of them: one of a square, else pairs.
template <int kN>
struct ColumnScales {
  float2 pairs[kN / 8];

  __device__ void load(const Codes& b, const float* scales, int64_t line, int columns) {
    if (b.scale_shift > 0) {  // a tile's columns lie in one square
      const float one = scales[line >> b.scale_shift];
#pragma unroll
      for (float2& pair : pairs) pair = make_float2(one, one);
      return;
    }
    const int at = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const int c = i * 8 + at;
      pairs[i] =
          make_float2(scales[line + min(c, columns - 1)], scales[line + min(c + 1, columns - 1)]);
    }
  }
};

template <int kN>
__global__ void __launch_bounds__(kThreads, Config<kN>::kBlocksAtOnce)
    fp8_product_kernel(const __grid_constant__ Launch launch) {
  using C = Config<kN>;
  extern __shared__ uint8_t memory[];
  uint8_t* space = memory + (1024 - hopper::shared_address(memory) % 1024) % 1024;
  const Product& p = launch.p;
  Work w;
  if (!find_work<kN>(launch, w)) return;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int group = warp / 4, row = warp * 16 + lane / 4;  // and 8 further down
  const auto copy = [&](int block) {
    if (block < w.blocks) {
      uint8_t* to = space + block % C::kStages * C::kStageBytes;
      copy_side<kBlock>(w.a + int64_t{block} * kBlock, p.a.pitch, w.rows, to);
      copy_side<kN>(w.b + int64_t{block} * kBlock, p.b.pitch, w.columns, to + C::kABytes);
    }
    ptx::cp_async_commit();
  };
  int64_t a_at[2];  // scales of rows that are not there are those of the last
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    a_at[h] = (w.a_line + min(row + h * 8, w.rows - 1)) >> p.a.scale_shift;
  }
  float total[kN / 2] = {}, sum[kN / 2];
#pragma unroll
  for (float& x : sum) x = 0;
#pragma unroll
  for (int s = 0; s + 1 < C::kStages; ++s) copy(s);
  for (int block = 0; block < w.blocks; ++block) {
    ptx::cp_async_wait<C::kStages - 2>();
    fence_copies();
    __syncthreads();  // this step is there, and the one before it has been multiplied
    const uint8_t* a = space + block % C::kStages * C::kStageBytes;
    const uint64_t from_a = hopper::wgmma_operand(a + group * kGroupRows * kBlock);
    const uint64_t from_b = hopper::wgmma_operand(a + C::kABytes);
    hopper::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlock / 32; ++k) {
      wgmma_e4m3<kN>(sum, from_a + 2 * k, from_b + 2 * k, k > 0);
    }
    hopper::wgmma_commit();
    copy(block + C::kStages - 1);
    const float* a_scales = w.a_scales + block * p.a.scale_pitch;
    const float sa[2] = {a_scales[a_at[0]], a_scales[a_at[1]]};
    ColumnScales<kN> sb;
    sb.load(p.b, w.b_scales + block * p.b.scale_pitch, w.b_line, w.columns);
    hopper::wgmma_wait<0>();
#pragma unroll
    for (float& x : sum) asm volatile("" : "+f"(x)::"memory");  // not read before
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* to = total + 4 * i + 2 * h;
        to[0] = fmaf(sum[4 * i + 2 * h], sa[h] * sb.pairs[i].x, to[0]);
        to[1] = fmaf(sum[4 * i + 2 * h + 1], sa[h] * sb.pairs[i].y, to[1]);
      }
    }
  }
  ptx::cp_async_wait<0>();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = row + h * 8;
    if (r >= w.rows) continue;
    float* c = w.c + r * w.c_row;
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const int at = i * 8 + lane % 4 * 2;
      write_pair(c + at, w.add, at < w.columns, at + 1 < w.columns, total[4 * i + 2 * h],
                 total[4 * i + 2 * h + 1]);
    }
  }
}

// C = or += the sums of a product's pieces, in their order. blockIdx.y is the group.
__global__ void __launch_bounds__(kThreads)
    add_fp8_pieces_kernel(const __grid_constant__ Launch l) {
  const Product& p = l.p;
  int64_t first = 0, rows = p.rows;
  if (p.offsets != nullptr) {
    const int64_t group = blockIdx.y;
    for (int64_t g = 0; g < group; ++g) {
      first += (p.offsets[g + 1] - p.offsets[g] + l.chunk * kBlock - 1) / (l.chunk * kBlock);
    }
    rows = p.offsets[group + 1] - p.offsets[group];
  }
  const int64_t pieces = (rows + l.chunk * kBlock - 1) / (l.chunk * kBlock), values = p.m * p.n;
  const float* from = l.pieces + first * values;
  float* c = p.c + blockIdx.y * p.c_group;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < values;
       i += int64_t{gridDim.x} * kThreads) {
    float& to = c[i / p.n * p.c_row + i % p.n];
    float sum = p.add ? to : 0.0f;
    for (int64_t k = 0; k < pieces; ++k) sum += from[k * values + i];
    to = sum;
  }
}

int64_t tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

template <int kN>
void launch_tiles(KernelContext& context, const Launch& l, int64_t down, int64_t pieces) {
  const auto kernel = fp8_product_kernel<kN>;
  allow_shared(reinterpret_cast<const void*>(kernel), Config<kN>::kShared, "fp8_products");
  const dim3 grid(static_cast<unsigned>(tiles(l.p.n, kN)), static_cast<unsigned>(down),
                  static_cast<unsigned>(pieces));
  kernel<<<grid, kThreads, Config<kN>::kShared, stream_of(context)>>>(l);
  check_launch("fp8_products");
}

}  // namespace

void multiply(KernelContext& context, const Product& p) {
  Launch l{p};
  const int64_t groups = p.offsets == nullptr ? 0 : p.groups;
  const int64_t down = tiles(p.m, kBlock) + (p.over_inner ? 0 : groups);
  int64_t pieces = 1;
  if (p.over_inner) {
    // Without groups as many as fill the device, of which none is short.
    const int64_t most = std::max<int64_t>(1, p.blocks / kShortestChunk);
    const int64_t own = tiles(p.n, kBlock) * down;
    const int64_t wanted = std::min(most, std::max<int64_t>(1, kFill / std::max<int64_t>(1, own)));
    l.chunk = groups > 0 ? kGroupChunk : tiles(p.blocks, wanted);
    pieces = tiles(tiles(p.rows, kBlock), l.chunk) + groups;
    if (groups > 0 || pieces > 1) {
      l.pieces = static_cast<float*>(device_scratch(
          context, kPiecesSlot, pieces * p.m * p.n * static_cast<int64_t>(sizeof(float))));
    }
  }
  const bool wide = (p.over_inner ? l.chunk : p.blocks) >= kManySteps && p.n > 64;
  wide ? launch_tiles<128>(context, l, down, pieces) : launch_tiles<64>(context, l, down, pieces);
  if (l.pieces == nullptr) return;
  const dim3 sums(static_cast<unsigned>(std::min<int64_t>(tiles(p.m * p.n, kThreads), 1024)),
                  static_cast<unsigned>(std::max<int64_t>(1, groups)));
  add_fp8_pieces_kernel<<<sums, kThreads, 0, stream_of(context)>>>(l);
  check_launch("fp8_products (pieces)");
}

}  // namespace tamis::fp8
