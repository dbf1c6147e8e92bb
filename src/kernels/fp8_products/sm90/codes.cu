// Codes and scales for fp8_products: values stay in registers between the largest of their block
// and their codes. Across rows a warp has a block, four values a lane. Otherwise 256 threads have a
// tile of 128 x 128: a thread four columns of 16 rows, four of them neighbours, so that its codes
// of a column are words; what must lie along the rows' index goes through shared memory. Bound by
// memory: 4 bytes (bf16: 2) read and one written for each form.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/fp8_products/fp8_products_impl.h"
#include "kernels/fp8_round/fp8_blocks.cuh"

namespace tamis::fp8 {
namespace {

constexpr int kQuads = kBlock / kEach;                 // words of a line of a tile
constexpr int kRowsOfThread = kBlock / kRowsAtOnce;    // 16
constexpr int kFoursOfThread = kRowsOfThread / kEach;  // neighbours
constexpr int kTurnedPitch = kQuads + 1;               // words: columns meet few banks twice

Source source_of(const Fp8Rows& x) { return {x.x, x.x_bf16, x.stride, x.width}; }

// Four codes, the first in the lowest byte. Saturating, nearest even; NaN gives 0x7F.
__device__ inline uint32_t pack_codes(float a, float b, float c, float d) {
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(high) : "f"(d), "f"(c));
  return low | static_cast<uint32_t>(high) << 16;
}

// Scales are powers of two: dividing is multiplying, exactly.
__device__ inline uint32_t codes_of(const float4& v, float scale) {
  const float by = 1 / scale;
  return pack_codes(v.x * by, v.y * by, v.z * by, v.w * by);
}

template <bool kFrom>
__global__ void __launch_bounds__(kThreads)
    across_kernel(const Source from, int64_t rows, const Codes to) {
  const bool words = on_words<kFrom>(from);
  const int64_t block = blockIdx.y, step = int64_t{gridDim.x} * (kThreads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; row < rows;
       row += step) {
    const float4 v = load<kFrom>(from, words, row, block * kBlock + lane * kEach);
    const float scale = scale_of(warp_largest(largest_of(v)), false);
    reinterpret_cast<uint32_t*>(to.codes + row * to.pitch + block * kBlock)[lane] =
        codes_of(v, scale);
    if (lane == 0) to.scales[block * to.scale_pitch + row] = scale;
  }
}

// The thread's rows of a tile: the i-th is row_of(y, i).
__device__ inline int row_of(int y, int i) {
  return i / kEach * (kRowsAtOnce * kEach) + y * kEach + i % kEach;
}

using Tile = float4[kRowsOfThread];

// What a tile's column x * 4 + e has in the rows 4 q .. 4 q + 3 of a thread.
__device__ inline float component(const float4& v, int e) {
  return e == 0 ? v.x : e == 1 ? v.y : e == 2 ? v.z : v.w;
}

// Codes of the thread's values, turned, to shared memory: line by column, words by row.
__device__ inline void turn(const Tile& v, const float4& inverse, int x, int y,
                            uint32_t (*turned)[kTurnedPitch]) {
#pragma unroll
  for (int q = 0; q < kFoursOfThread; ++q) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const float by = component(inverse, e);
      turned[x * kEach + e][q * kRowsAtOnce + y] =
          pack_codes(component(v[4 * q], e) * by, component(v[4 * q + 1], e) * by,
                     component(v[4 * q + 2], e) * by, component(v[4 * q + 3], e) * by);
    }
  }
}

// Lines [first, lines) of the turned tile to block `block` of theirs.
__device__ inline void store_turned(const uint32_t (*turned)[kTurnedPitch], uint8_t* codes,
                                    int64_t pitch, int64_t first, int64_t lines, int64_t block) {
  const int word = static_cast<int>(threadIdx.x) % kQuads;
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const int line = static_cast<int>(threadIdx.x) / kQuads + i * kRowsAtOnce;
    if (first + line >= lines) continue;
    reinterpret_cast<uint32_t*>(codes + (first + line) * pitch + block * kBlock)[word] =
        turned[line][word];
  }
}

// blockIdx.x counts blocks of rows, blockIdx.y those of columns.
template <bool kFrom, bool kAcross>
__global__ void __launch_bounds__(kThreads)
    down_kernel(const Source from, int64_t rows, const Fp8Groups groups, const Codes across,
                const Codes down) {
  __shared__ float4 part[kRowsAtOnce][kQuads];
  __shared__ uint32_t turned[kBlock][kTurnedPitch];
  GroupPart found{};
  if (!find_part(groups.offsets, groups.groups, rows, kBlock, blockIdx.x, found)) return;
  const int64_t first = found.begin + found.part * kBlock, last = found.end;
  const int64_t block = found.blocks + found.part;
  const bool words = on_words<kFrom>(from);
  const int x = static_cast<int>(threadIdx.x) % kQuads, y = static_cast<int>(threadIdx.x) / kQuads;
  const int64_t c = int64_t{blockIdx.y} * kBlock + x * kEach;
  Tile v;
  float4 top = all(0);
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const int64_t row = first + row_of(y, i);
    v[i] = row < last ? load<kFrom>(from, words, row, c) : all(0);
    top = largest_each(top, v[i]);
  }
  part[y][x] = top;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) top = largest_each(top, part[i][x]);
  const float4 scale = scales_of(top);
  if (y == 0) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (c + e < from.width) {
        down.scales[block * down.scale_pitch + c + e] = component(scale, e);
      }
    }
  }
  turn(v, make_float4(1 / scale.x, 1 / scale.y, 1 / scale.z, 1 / scale.w), x, y, turned);
  if constexpr (kAcross) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int64_t row = first + row_of(y, i);
      const float own = scale_of(warp_largest(largest_of(v[i])), false);
      if (row >= last) continue;
      reinterpret_cast<uint32_t*>(across.codes + row * across.pitch +
                                  int64_t{blockIdx.y} * kBlock)[x] = codes_of(v[i], own);
      if (x == 0) across.scales[blockIdx.y * across.scale_pitch + row] = own;
    }
  }
  __syncthreads();
  store_turned(turned, down.codes, down.pitch, int64_t{blockIdx.y} * kBlock, from.width, block);
}

// blockIdx: columns, rows, the matrix.
template <bool kTurned>
__global__ void __launch_bounds__(kThreads)
    weight_kernel(Source from, int64_t rows, int64_t stride, Codes to) {
  __shared__ uint32_t turned[kTurned ? kBlock : 1][kTurnedPitch];
  from.x += blockIdx.z * stride;
  to.codes += blockIdx.z * to.group_codes;
  to.scales += blockIdx.z * to.group_scales;
  const bool words = on_words<false>(from);
  const int x = static_cast<int>(threadIdx.x) % kQuads, y = static_cast<int>(threadIdx.x) / kQuads;
  const int64_t first = int64_t{blockIdx.y} * kBlock;
  const int64_t c = int64_t{blockIdx.x} * kBlock + x * kEach;
  Tile v;
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const int64_t row = first + row_of(y, i);
    v[i] = row < rows ? load<false>(from, words, row, c) : all(0);
    largest = fmaxf(largest, largest_of(v[i]));
  }
  const float scale = scale_of(block_max<kThreads>(largest), true);
  if (threadIdx.x == 0) {
    const int64_t line = kTurned ? blockIdx.x : blockIdx.y,
                  inner = kTurned ? blockIdx.y : blockIdx.x;
    to.scales[inner * to.scale_pitch + line] = scale;
  }
  if constexpr (kTurned) {
    turn(v, all(1 / scale), x, y, turned);
    __syncthreads();
    store_turned(turned, to.codes, to.pitch, int64_t{blockIdx.x} * kBlock, from.width, blockIdx.y);
  } else {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int64_t row = first + row_of(y, i);
      if (row >= rows) continue;
      reinterpret_cast<uint32_t*>(to.codes + row * to.pitch + int64_t{blockIdx.x} * kBlock)[x] =
          codes_of(v[i], scale);
    }
  }
}

unsigned tiles(int64_t n) { return static_cast<unsigned>((n + kBlock - 1) / kBlock); }

}  // namespace

void codes_across(KernelContext& context, const Fp8Rows& x, const Codes& to) {
  constexpr int64_t kMostBlocks = 1 << 14, kRows = kThreads / 32;  // a warp goes on further down
  const dim3 grid(static_cast<unsigned>(std::min(kMostBlocks, (x.rows + kRows - 1) / kRows)),
                  tiles(x.width));
  const auto kernel = x.x_bf16 != nullptr ? across_kernel<true> : across_kernel<false>;
  kernel<<<grid, kThreads, 0, stream_of(context)>>>(source_of(x), x.rows, to);
  check_launch("fp8_products (codes across)");
}

void codes_down(KernelContext& context, const Fp8Rows& x, const Fp8Groups& groups,
                const Codes& across, const Codes& down) {
  const auto extra = static_cast<unsigned>(groups.offsets == nullptr ? 0 : groups.groups);
  const dim3 grid(tiles(x.rows) + extra, tiles(x.width));
  const bool both = across.codes != nullptr, from = x.x_bf16 != nullptr;
  const auto kernel = from ? (both ? down_kernel<true, true> : down_kernel<true, false>)
                           : (both ? down_kernel<false, true> : down_kernel<false, false>);
  kernel<<<grid, kThreads, 0, stream_of(context)>>>(source_of(x), x.rows, groups, across, down);
  check_launch("fp8_products (codes down)");
}

void codes_of_weight(KernelContext& context, const float* w, int64_t rows, int64_t cols,
                     const Fp8Groups& groups, bool turned, const Codes& to) {
  const dim3 grid(tiles(cols), tiles(rows), static_cast<unsigned>(groups.groups));
  const auto kernel = turned ? weight_kernel<true> : weight_kernel<false>;
  kernel<<<grid, kThreads, 0, stream_of(context)>>>({w, nullptr, cols, cols}, rows, groups.stride,
                                                    to);
  check_launch("fp8_products (codes of weights)");
}

}  // namespace tamis::fp8
