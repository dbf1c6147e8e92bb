// matmul with factors rounded to bf16 for products whose factors lie on 16 bytes, in whole quads.
//
// A block of 4 warps computes a tile of C of 128 or 64 rows and columns, a warp a quarter of it by
// mma m16n8k16. float32 factors come to shared memory by asynchronous copies, kStages steps of 16
// inner indices on their way at a time, in the layout that they have; a fragment is read from there
// and rounded. Bound by the copies from L2, for short inner lengths by memory.
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/matmul/matmul_parts.cuh"

namespace tamis {
namespace tiled {
namespace {

constexpr int kStep = 16, kStages = 4, kAsyncThreads = 128;
// Floats from line to line (kAlong: inner indices side by side) or from inner index to inner index:
// a warp's fragments meet no bank twice.
constexpr int kAlongPitch = 24;
template <int kLines>
constexpr int kLinesPitch = kLines + 4;

template <bool kAlong, int kLines>
struct Side {
  static constexpr int kFloats = kAlong ? kLines * kAlongPitch : kStep * kLinesPitch<kLines>;
  float values[kFloats];

  // Step k of a side whose tile begins at `from`: `lines` and `inner` of it are there.
  __device__ void copy(const float* from, int64_t stride, int64_t lines, int64_t inner, int64_t k) {
#pragma unroll
    for (int i = 0; i < kLines * kStep / 4 / kAsyncThreads; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kAsyncThreads;
      const int line = kAlong ? q / (kStep / 4) : q % (kLines / 4) * 4;
      const int at = kAlong ? q % (kStep / 4) * 4 : q / (kLines / 4);
      const bool here = line < lines && k + at < inner;
      const float* x = kAlong ? from + line * stride + k + at : from + (k + at) * stride + line;
      float* to = values + (kAlong ? line * kAlongPitch + at : at * kLinesPitch<kLines> + line);
      ptx::cp_async_16(to, here ? x : from, here);
    }
  }

  // Inner indices k and k + 1 of a line, rounded.
  __device__ uint32_t pair(int line, int k) const {
    if constexpr (kAlong) {
      const float2 v = *reinterpret_cast<const float2*>(values + line * kAlongPitch + k);
      return ptx::pack_bf16(v.x, v.y);
    } else {
      const float* v = values + k * kLinesPitch<kLines> + line;
      return ptx::pack_bf16(v[0], v[kLinesPitch<kLines>]);
    }
  }
};

template <bool kA, bool kB, int kM, int kN>
struct Stage {
  Side<kA, kM> a;
  Side<kB, kN> b;
};

template <bool kA, bool kB, int kM, int kN>
__global__ void __launch_bounds__(kAsyncThreads, 2)
    matmul_async_kernel(const __grid_constant__ Products products) {
  constexpr int kRowTiles = kM / 32, kColTiles = kN / 16;  // of a warp: 16 rows, 8 columns each
  extern __shared__ __align__(16) unsigned char space[];
  auto* stages = reinterpret_cast<Stage<kA, kB, kM, kN>*>(space);
  Work w;
  if (!find_work<kM, kN>(products, w)) return;
  const MatmulArgs<float>& p = w.p;
  const float* a = p.a + w.row * p.a_row;
  const float* b = p.b + w.col * p.b_col;
  const int64_t lines_a = p.m - w.row, lines_b = p.n - w.col;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row = warp / 2 * (kM / 2) + lane / 4, col = warp % 2 * (kN / 2) + lane / 4;
  const auto copy = [&](int64_t k, int stage) {
    if (k < p.inner) {
      stages[stage].a.copy(a, kA ? p.a_row : p.a_col, lines_a, p.inner, k);
      stages[stage].b.copy(b, kB ? p.b_col : p.b_row, lines_b, p.inner, k);
    }
    ptx::cp_async_commit();
  };
  float sum[kRowTiles][kColTiles][4] = {};
#pragma unroll
  for (int s = 0; s + 1 < kStages; ++s) copy(s * kStep, s);
  int stage = 0;
  for (int64_t k = 0; k < p.inner; k += kStep, stage = (stage + 1) % kStages) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // this step is there, and the one before it has been multiplied
    copy(k + (kStages - 1) * kStep, (stage + kStages - 1) % kStages);
    const Stage<kA, kB, kM, kN>& s = stages[stage];
    const int at = lane % 4 * 2;
    uint32_t x[kRowTiles][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) x[i][r] = s.a.pair(row + i * 16 + r % 2 * 8, at + r / 2 * 8);
    }
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      const uint32_t y0 = s.b.pair(col + j * 8, at), y1 = s.b.pair(col + j * 8, at + 8);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) mma_bf16(sum[i][j], x[i], y0, y1);
    }
  }
  const int64_t c0 = w.col + warp % 2 * (kN / 2) + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      const int64_t r = w.row + row + i * 16;
      write_pair(p, r, c0 + j * 8, sum[i][j][0], sum[i][j][1]);
      write_pair(p, r + 8, c0 + j * 8, sum[i][j][2], sum[i][j][3]);
    }
  }
}

template <bool kA, bool kB, int kM, int kN>
void launch_tile(KernelContext& context, Products& products) {
  const auto kernel = matmul_async_kernel<kA, kB, kM, kN>;
  constexpr int kShared = kStages * sizeof(Stage<kA, kB, kM, kN>);
  allow_shared(reinterpret_cast<const void*>(kernel), kShared, "matmul");
  launch<kM, kN>(context, products, kernel, kAsyncThreads, kShared);
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

}  // namespace

void launch_async(KernelContext& context, Products& products, const Bf16Kind& kind) {
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
