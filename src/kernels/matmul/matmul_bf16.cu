// matmul with factors rounded to bf16, on the tensor cores: sums in float32, C in float32.
//
// A block of 8 warps computes a tile of C of 128 or 64 rows and columns, a warp half the rows and a
// quarter of the columns by mma m16n8k16, 16 inner indices in shared memory at a time while the
// next ones are on their way in registers, where they are rounded. Shared memory keeps the layout
// of the factors: what lies side by side along the inner index is read with ldmatrix, what lies
// side by side along rows of A or columns of B with its transposing form. Bound by the loads of
// float32 factors from L2 for the shapes of small models.
#include <cuda_bf16.h>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/matmul/matmul_parts.cuh"

namespace tamis {
namespace tiled {
namespace {

constexpr int kStep = 16;             // inner indices at a time
constexpr int kAlongRow = kStep + 8;  // elements from line to line; no two of 8 meet a bank
// Of a side with kLines lines: elements from inner index to inner index, of a stage; copies of a
// thread.
template <int kLines>
constexpr int kLinesRow = kLines + 8;
template <int kLines>
constexpr int kStage = kLines* kAlongRow;
template <int kLines>
constexpr int kQuads = kLines* kStep / 4 / kThreads;
static_assert(kStep * kLinesRow<64> <= kStage<64>);

template <bool kAlong, int kLines>
__device__ inline void store_quad(int q, const float4& v, __nv_bfloat16* to) {
  const int at = kAlong ? q / (kStep / 4) * kAlongRow + q % (kStep / 4) * 4
                        : q / (kLines / 4) * kLinesRow<kLines> + q % (kLines / 4) * 4;
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
  uint2 bits;
  bits.x = *reinterpret_cast<const uint32_t*>(&low);
  bits.y = *reinterpret_cast<const uint32_t*>(&high);
  *reinterpret_cast<uint2*>(to + at) = bits;
}

// The 16 rows of A from `row` on.
template <bool kAlong, int kLines>
__device__ inline void load_a(const __nv_bfloat16* from, int row, uint32_t (&a)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
  if constexpr (kAlong) {
    ptx::ldmatrix_x4(a, from + (row + j % 2 * 8 + i) * kAlongRow + j / 2 * 8);
  } else {
    ptx::ldmatrix_x4_trans(a, from + (j / 2 * 8 + i) * kLinesRow<kLines> + row + j % 2 * 8);
  }
}

// The 16 columns of B from `col` on: b[0], b[1] of the first eight, b[2], b[3] of the others.
template <bool kAlong, int kLines>
__device__ inline void load_b(const __nv_bfloat16* from, int col, uint32_t (&b)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), j = lane / 8, i = lane % 8;
  if constexpr (kAlong) {
    ptx::ldmatrix_x4(b, from + (col + j / 2 * 8 + i) * kAlongRow + j % 2 * 8);
  } else {
    ptx::ldmatrix_x4_trans(b, from + (j % 2 * 8 + i) * kLinesRow<kLines> + col + j / 2 * 8);
  }
}

template <bool kA, bool kB, int kM, int kN>
__global__ void __launch_bounds__(kThreads, 2)
    matmul_bf16_kernel(const __grid_constant__ Products products) {
  constexpr int kRowTiles = kM / 32, kColPairs = kN / 64;  // of a warp: 16 rows, 16 columns each
  __shared__ __align__(16) __nv_bfloat16 stages_a[2][kStage<kM>], stages_b[2][kStage<kN>];
  Work w;
  if (!find_work<kM, kN>(products, w)) return;
  const MatmulArgs<float>& p = w.p;
  const Side a = side_of(p.a, p.a_row, p.a_col, w.row, p.m, p.inner);
  const Side b = side_of(p.b, p.b_col, p.b_row, w.col, p.n, p.inner);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row = warp / 4 * (kM / 2), col = warp % 4 * (kN / 4);
  float4 next_a[kQuads<kM>], next_b[kQuads<kN>];
  const auto load = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < kQuads<kM>; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      next_a[i] = load_quad<kM, kStep>(a, kA, q, k);
    }
#pragma unroll
    for (int i = 0; i < kQuads<kN>; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      next_b[i] = load_quad<kN, kStep>(b, kB, q, k);
    }
  };
  const auto store = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kQuads<kM>; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      store_quad<kA, kM>(q, next_a[i], stages_a[stage]);
    }
#pragma unroll
    for (int i = 0; i < kQuads<kN>; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      store_quad<kB, kN>(q, next_b[i], stages_b[stage]);
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
    for (int i = 0; i < kRowTiles; ++i) load_a<kA, kM>(stages_a[stage], row + i * 16, x[i]);
#pragma unroll
    for (int j = 0; j < kColPairs; ++j) load_b<kB, kN>(stages_b[stage], col + j * 16, y[j]);
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

namespace {

template <bool kA, bool kB>
void launch_tiles(KernelContext& context, Products& products, const Bf16Kind& kind) {
  if (kind.wide_m) {
    kind.wide_n ? launch<128, 128>(context, products, matmul_bf16_kernel<kA, kB, 128, 128>)
                : launch<128, 64>(context, products, matmul_bf16_kernel<kA, kB, 128, 64>);
  } else {
    kind.wide_n ? launch<64, 128>(context, products, matmul_bf16_kernel<kA, kB, 64, 128>)
                : launch<64, 64>(context, products, matmul_bf16_kernel<kA, kB, 64, 64>);
  }
}

}  // namespace

void launch_bf16(KernelContext& context, Products& products, const Bf16Kind& kind) {
  if (kind.a_along) {
    kind.b_along ? launch_tiles<true, true>(context, products, kind)
                 : launch_tiles<true, false>(context, products, kind);
  } else {
    kind.b_along ? launch_tiles<false, true>(context, products, kind)
                 : launch_tiles<false, false>(context, products, kind);
  }
}

}  // namespace tiled
}  // namespace tamis
