// matmul with factors rounded to bf16, on the tensor cores: sums in float32, C in float32.
//
// A block of 8 warps computes a tile of 128x128 of C, a warp 64x32 of it by mma m16n8k16, 16 inner
// indices in shared memory at a time while the next ones are on their way in registers, where they
// are rounded. Shared memory keeps the layout of the factors: what lies side by side along the
// inner index is read with ldmatrix, what lies side by side along rows of A or columns of B with
// its transposing form. Bound by the loads of float32 factors from L2 for the shapes of small
// models.
#include <cuda_bf16.h>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/matmul/matmul_parts.cuh"

namespace tamis {
namespace tiled {
namespace {

constexpr int kTile = 128;
constexpr int kStep = 16;             // inner indices at a time
constexpr int kAlongRow = kStep + 8;  // elements from line to line; no two of 8 meet a bank
constexpr int kLinesRow = kTile + 8;  // from inner index to inner index
constexpr int kStage = kTile * kAlongRow;
constexpr int kQuads = kTile * kStep / 4 / kThreads;
constexpr int kRowTiles = 4, kColPairs = 2;  // of a warp: 16 rows each, 16 columns each
static_assert(kStep * kLinesRow <= kStage);

template <bool kAlong>
__device__ inline void store_quad(int q, const float4& v, __nv_bfloat16* to) {
  const int at = kAlong ? q / (kStep / 4) * kAlongRow + q % (kStep / 4) * 4
                        : q / (kTile / 4) * kLinesRow + q % (kTile / 4) * 4;
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
  uint2 bits;
  bits.x = *reinterpret_cast<const uint32_t*>(&low);
  bits.y = *reinterpret_cast<const uint32_t*>(&high);
  *reinterpret_cast<uint2*>(to + at) = bits;
}

// The 16 rows of A from `row` on.
template <bool kAlong>
__device__ inline void load_a(const __nv_bfloat16* from, int row, uint32_t (&a)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
  if constexpr (kAlong) {
    ptx::ldmatrix_x4(a, from + (row + j % 2 * 8 + i) * kAlongRow + j / 2 * 8);
  } else {
    ptx::ldmatrix_x4_trans(a, from + (j / 2 * 8 + i) * kLinesRow + row + j % 2 * 8);
  }
}

// The 16 columns of B from `col` on: b[0], b[1] of the first eight, b[2], b[3] of the others.
template <bool kAlong>
__device__ inline void load_b(const __nv_bfloat16* from, int col, uint32_t (&b)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
  if constexpr (kAlong) {
    ptx::ldmatrix_x4(b, from + (col + j / 2 * 8 + i) * kAlongRow + j % 2 * 8);
  } else {
    ptx::ldmatrix_x4_trans(b, from + (j % 2 * 8 + i) * kLinesRow + col + j / 2 * 8);
  }
}

__device__ inline void write_pair(const MatmulArgs<float>& p, int64_t row, int64_t col, float x,
                                  float y) {
  if (row >= p.m || col >= p.n) return;
  float* c = p.c + row * p.c_row + col;
  if (col + 1 < p.n && reinterpret_cast<uintptr_t>(c) % sizeof(float2) == 0) {
    auto* pair = reinterpret_cast<float2*>(c);
    const float2 old = p.accumulate ? *pair : make_float2(0, 0);
    *pair = make_float2(old.x + x, old.y + y);
    return;
  }
  c[0] = p.accumulate ? c[0] + x : x;
  if (col + 1 < p.n) c[1] = p.accumulate ? c[1] + y : y;
}

template <bool kA, bool kB>
__global__ void __launch_bounds__(kThreads, 2)
    matmul_bf16_kernel(const __grid_constant__ Products products) {
  __shared__ __align__(16) __nv_bfloat16 stages[2][2][kStage];
  Work w;
  if (!find_work<kTile>(products, w)) return;
  const MatmulArgs<float>& p = w.p;
  const Side a = side_of(p.a, p.a_row, p.a_col, w.row, p.m, p.inner);
  const Side b = side_of(p.b, p.b_col, p.b_row, w.col, p.n, p.inner);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row = warp / 4 * 64, col = warp % 4 * 32;
  float4 next_a[kQuads], next_b[kQuads];
  const auto load = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      next_a[i] = load_quad<kTile, kStep>(a, kA, q, k);
      next_b[i] = load_quad<kTile, kStep>(b, kB, q, k);
    }
  };
  const auto store = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      store_quad<kA>(q, next_a[i], stages[stage][0]);
      store_quad<kB>(q, next_b[i], stages[stage][1]);
    }
  };
  float sum[kRowTiles][2 * kColPairs][4] = {};
  load(0);
  store(0);
  __syncthreads();
  int stage = 0;
  for (int64_t k = 0; k < p.inner; k += kStep, stage ^= 1) {
    const bool more = k + kStep < p.inner;
    if (more) load(k + kStep);
    uint32_t x[kRowTiles][4], y[kColPairs][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) load_a<kA>(stages[stage][0], row + i * 16, x[i]);
#pragma unroll
    for (int j = 0; j < kColPairs; ++j) load_b<kB>(stages[stage][1], col + j * 16, y[j]);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kColPairs; ++j) {
        mma_bf16(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
      }
    }
    if (more) store(stage ^ 1);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * kColPairs; ++j) {
      const int64_t r = w.row + row + i * 16 + lane / 4, c = w.col + col + j * 8 + lane % 4 * 2;
      write_pair(p, r, c, sum[i][j][0], sum[i][j][1]);
      write_pair(p, r + 8, c, sum[i][j][2], sum[i][j][3]);
    }
  }
}

}  // namespace

void launch_bf16(KernelContext& context, Products& products, bool a_along, bool b_along) {
  if (a_along) {
    b_along ? launch<kTile>(context, products, matmul_bf16_kernel<true, true>)
            : launch<kTile>(context, products, matmul_bf16_kernel<true, false>);
  } else {
    b_along ? launch<kTile>(context, products, matmul_bf16_kernel<false, true>)
            : launch<kTile>(context, products, matmul_bf16_kernel<false, false>);
  }
}

}  // namespace tiled
}  // namespace tamis
