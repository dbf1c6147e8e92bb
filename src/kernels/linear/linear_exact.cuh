// linear in float32 on CUDA cores: W dequantised exactly, fma in float32.
//
//   y[m,r] = sum_c W[r,c] x[m,c]      x [m, cols], W [rows, cols] in any format of weight.h
//
// Order of a sum, the same in both kernels, a function of the columns and the format alone. A piece
// is the columns in 16 bytes of W (4 of F32, 8 of F16 and BF16, 16 of F8_E4M3 and I8, 32 of I4).
// Lane l of 32 adds pieces l, l+32, l+64, .. by fma, column after column; then the 32 lane sums are
// added in order.
//
// stream_kernel, few rows of x: a warp owns 4 rows of W and its lanes are the lanes of the order.
// It reads W once, 512 bytes of a row at a time, and x from L2. Bound by memory: bytes of W.
// tile_kernel, many rows: 256 threads, a tile of 64x64 or 128x128 outputs, 4x4 or 8x8 a thread; the
// pieces of lane 0 first, then those of lane 1, .., 32 columns of W and x at a time in shared
// memory. At the end of a lane its sum is added to the total. Bound by fma: 2 * m * rows * cols
// flops.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/linear/products.cuh"

namespace tamis {
namespace exact {

constexpr int kLanes = 32;
constexpr int kStreamWarps = 4;
constexpr int kStreamRows = 4;  // rows of W of a warp
constexpr int kTileThreads = 256;
constexpr int kStep = 32;  // columns in shared memory at a time

__device__ inline float fma4(const float4& w, const float4& x, float sum) {
  return fmaf(w.w, x.w, fmaf(w.z, x.z, fmaf(w.y, x.y, fmaf(w.x, x.x, sum))));
}

// The kStreamRows rows of W from r0 on to L1, without waiting: a lane of the warp asks for a line.
__device__ inline void prefetch_rows(const Weight& w, int64_t r0, int lane) {
  constexpr int kLanesOfRow = kLanes / kStreamRows;
  constexpr int64_t kLine = 128;  // bytes
  const int64_t row = r0 + lane / kLanesOfRow;
  if (row >= w.rows) return;
  for (int64_t b = lane % kLanesOfRow * kLine; b < w.row_bytes; b += kLanesOfRow * kLine) {
    ptx::prefetch_l1(w.data + row * w.row_bytes + b);
  }
}

// stream_lane() where no piece is cut and all can be read as they lie: a step of decoding is as
// long as the instructions between its loads are many. It takes more registers, so that kernels of
// many blocks have it where that was measured: one row of x, BF16.
template <DType T, int kM>
__device__ inline void stream_whole_pieces(const LinearArgs& p, int64_t r0, int64_t m0, int lane,
                                           float (&sum)[kStreamRows][kM]) {
  constexpr int kC = kPiece<T>;
  const auto cols = static_cast<int>(p.w.cols), last_row = static_cast<int>(p.w.rows) - 1;
  const uint4* w[kStreamRows];
  const float4* x[kM];
#pragma unroll
  for (int r = 0; r < kStreamRows; ++r) {
    const int64_t row = min(static_cast<int>(r0) + r, last_row);
    w[r] = reinterpret_cast<const uint4*>(p.w.data + row * p.w.row_bytes);
  }
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    x[i] = reinterpret_cast<const float4*>(p.x + min(m0 + i, p.m - 1) * p.x_stride);
  }
  for (int col = lane * kC; col < cols; col += kLanes * kC) {
    uint4 raw[kStreamRows];
    float scale[kStreamRows];
#pragma unroll
    for (int r = 0; r < kStreamRows; ++r) {
      raw[r] = __ldg(w[r] + col / kC);
      scale[r] = piece_scale<T>(p.w, min(static_cast<int>(r0) + r, last_row), col);
    }
#pragma unroll
    for (int j = 0; j < kC / 4; ++j) {
      float4 v[kM];
#pragma unroll
      for (int i = 0; i < kM; ++i) v[i] = x[i][col / 4 + j];
#pragma unroll
      for (int r = 0; r < kStreamRows; ++r) {
        const int word = j * 16 / kC;
        const float4 value = decode4<T>(&raw[r].x + word, T == DType::kI4 ? j % 2 : 0, scale[r]);
#pragma unroll
        for (int i = 0; i < kM; ++i) sum[r][i] = fma4(value, v[i], sum[r][i]);
      }
    }
  }
}

// The lane sums of kRows x kM outputs. kWhole: with stream_whole_pieces, where it can be.
template <DType T, int kM, bool kWhole = T == DType::kBF16&& kM == 1>
__device__ inline void stream_lane(const LinearArgs& p, int64_t r0, int64_t m0, int lane,
                                   float (&sum)[kStreamRows][kM]) {
  constexpr int kC = kPiece<T>;
  const bool fast = piecewise<T>(p.w), x_fast = by_fours(p.x, p.x_stride);
  if constexpr (kWhole) {
    if (fast && x_fast && p.w.cols % kC == 0) {
      return stream_whole_pieces<T, kM>(p, r0, m0, lane, sum);
    }
  }
  for (int64_t col = int64_t{lane} * kC; col < p.w.cols; col += kLanes * kC) {
    const bool whole = fast && col + kC <= p.w.cols;
    uint4 raw[kStreamRows];
    float scale[kStreamRows];
    for (int r = 0; r < kStreamRows; ++r) {
      const int64_t row = min(r0 + r, p.w.rows - 1);
      if (!whole) continue;
      raw[r] = __ldg(reinterpret_cast<const uint4*>(p.w.data + row * p.w.row_bytes) + col / kC);
      scale[r] = piece_scale<T>(p.w, row, col);
    }
#pragma unroll
    for (int j = 0; j < kC / 4; ++j) {
      float4 x[kM];
      for (int i = 0; i < kM; ++i) {
        const int64_t m = min(m0 + i, p.m - 1);
        x[i] = row4(p.x + m * p.x_stride, x_fast, col + 4 * j, p.w.cols);
      }
      for (int r = 0; r < kStreamRows; ++r) {
        const int64_t row = min(r0 + r, p.w.rows - 1);
        const int word = j * 16 / kC;
        const float4 w = whole ? decode4<T>(&raw[r].x + word, T == DType::kI4 ? j % 2 : 0, scale[r])
                               : weight4<T>(p.w, false, row, col + 4 * j);
        for (int i = 0; i < kM; ++i) sum[r][i] = fma4(w, x[i], sum[r][i]);
      }
    }
  }
}

template <DType T, int kM>
__global__ void __launch_bounds__(kStreamWarps * 32) stream_kernel(const Products products) {
  __shared__ float part[kStreamWarps][kStreamRows * kM][kLanes + 1];
  const LinearArgs p = products.product(static_cast<int>(blockIdx.z));
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t r0 = (int64_t{blockIdx.x} * kStreamWarps + warp) * kStreamRows;
  if (r0 >= p.w.rows) return;
  for (int64_t m0 = int64_t{blockIdx.y} * kM; m0 < p.m; m0 += int64_t{gridDim.y} * kM) {
    float sum[kStreamRows][kM] = {};
    stream_lane<T, kM>(p, r0, m0, lane, sum);
    for (int r = 0; r < kStreamRows; ++r) {
      for (int i = 0; i < kM; ++i) part[warp][r * kM + i][lane] = sum[r][i];
    }
    __syncwarp();
    if (lane < kStreamRows * kM) {
      float total = 0;
      for (int l = 0; l < kLanes; ++l) total += part[warp][lane][l];
      const int64_t r = r0 + lane / kM, m = m0 + lane % kM;
      if (r < p.w.rows && m < p.m) p.y[m * p.y_stride + r] = total;
    }
    __syncwarp();
  }
}

// The n-th piece in the order of lanes.
struct Piece {
  int64_t col;
  bool last;  // of its lane
};

// Pieces are numbered lane by lane: the first `full` lanes have `passes` of them, the others one
// less.
template <DType T>
struct PieceOrder {
  int64_t passes, full, count;

  __device__ explicit PieceOrder(int64_t cols) {
    constexpr int64_t kC = kPiece<T>, kPass = kC * kLanes;
    passes = (cols + kPass - 1) / kPass;
    full = cols == 0 ? 0 : (cols - (passes - 1) * kPass + kC - 1) / kC;
    count = full * passes + (kLanes - full) * max(passes - 1, int64_t{0});
  }
  __device__ Piece at(int64_t n) const {
    const bool in_full = n < full * passes;
    const auto rest = static_cast<uint32_t>(in_full ? n : n - full * passes);
    const auto per_lane = static_cast<uint32_t>(in_full ? passes : passes - 1);
    const uint32_t lane = rest / per_lane, turn = rest % per_lane;
    return {(int64_t{turn} * kLanes + lane + (in_full ? 0 : full)) * kPiece<T>,
            turn + 1 == per_lane};
  }
};

template <int kTile>
struct TileStorage {
  float w[kStep][kTile + 4];  // + 4: stores of one column go to different banks
  float x[kStep][kTile + 4];
};

// One step of kStep columns, pieces first .. of the order, into shared memory.
template <DType T, int kTile>
__device__ inline void load_step(const LinearArgs& p, const PieceOrder<T>& order, int64_t first,
                                 int64_t r0, int64_t m0, TileStorage<kTile>& tile) {
  const bool fast = piecewise<T>(p.w), x_fast = by_fours(p.x, p.x_stride);
  for (int g = static_cast<int>(threadIdx.x); g < kTile * kStep / 4; g += kTileThreads) {
    const int row = g % kTile, k = g / kTile * 4;
    float4 w = make_float4(0, 0, 0, 0), x = w;
    const int64_t n = first + k / kPiece<T>;
    if (n < order.count) {
      const int64_t col = order.at(n).col + k % kPiece<T>;
      w = weight4<T>(p.w, fast, r0 + row, col);
      if (m0 + row < p.m) x = row4(p.x + (m0 + row) * p.x_stride, x_fast, col, p.w.cols);
    }
    tile.w[k][row] = w.x, tile.w[k + 1][row] = w.y;
    tile.w[k + 2][row] = w.z, tile.w[k + 3][row] = w.w;
    tile.x[k][row] = x.x, tile.x[k + 1][row] = x.y;
    tile.x[k + 2][row] = x.z, tile.x[k + 3][row] = x.w;
  }
}

// Four values of a thread's row or column of outputs for every 64 of the tile.
template <int kEach>
__device__ inline void read_operand(const float* from, int thread, float (&v)[kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; i += 4) {
    const float4 q = *reinterpret_cast<const float4*>(from + i * 16 + thread * 4);
    v[i] = q.x, v[i + 1] = q.y, v[i + 2] = q.z, v[i + 3] = q.w;
  }
}

// kEach x kEach outputs a thread, 16 x 16 threads.
template <DType T, int kEach>
__device__ inline void tile_product(const LinearArgs& p, int64_t r0, int64_t m0,
                                    TileStorage<kEach * 16>& tile) {
  constexpr int kPieces = kStep / kPiece<T>;
  const int tr = static_cast<int>(threadIdx.x % 16), tm = static_cast<int>(threadIdx.x / 16);
  const PieceOrder<T> order(p.w.cols);
  float total[kEach][kEach] = {}, sum[kEach][kEach] = {};
  for (int64_t first = 0; first < order.count; first += kPieces) {
    __syncthreads();
    load_step<T, kEach * 16>(p, order, first, r0, m0, tile);
    __syncthreads();
    for (int n = 0; n < kPieces && first + n < order.count; ++n) {
#pragma unroll
      for (int c = 0; c < kPiece<T>; ++c) {
        float w[kEach], x[kEach];
        read_operand(tile.w[n * kPiece<T> + c], tr, w);
        read_operand(tile.x[n * kPiece<T> + c], tm, x);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int r = 0; r < kEach; ++r) sum[i][r] = fmaf(w[r], x[i], sum[i][r]);
        }
      }
      if (!order.at(first + n).last) continue;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int r = 0; r < kEach; ++r) {
          total[i][r] += sum[i][r];
          sum[i][r] = 0;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const int64_t m = m0 + i / 4 * 64 + tm * 4 + i % 4, row = r0 + r / 4 * 64 + tr * 4 + r % 4;
      if (m < p.m && row < p.w.rows) p.y[m * p.y_stride + row] = total[i][r];
    }
  }
}

template <DType T, int kEach>
__global__ void __launch_bounds__(kTileThreads, kEach == 4 ? 3 : 1)
    tile_kernel(const Products products) {
  __shared__ __align__(16) TileStorage<kEach * 16> tile;
  const LinearArgs p = products.product(static_cast<int>(blockIdx.z));
  const int64_t r0 = int64_t{blockIdx.x} * kEach * 16;
  if (r0 >= p.w.rows) return;
  for (int64_t m0 = int64_t{blockIdx.y} * kEach * 16; m0 < p.m;
       m0 += int64_t{gridDim.y} * kEach * 16) {
    tile_product<T, kEach>(p, r0, m0, tile);
  }
}

template <DType T, int kM>
void launch_stream(KernelContext& context, const Products& p, int64_t rows, int64_t m) {
  const dim3 grid(
      static_cast<unsigned>((rows + kStreamWarps * kStreamRows - 1) / (kStreamWarps * kStreamRows)),
      static_cast<unsigned>(std::min<int64_t>((m + kM - 1) / kM, 65535)),
      static_cast<unsigned>(p.count));
  stream_kernel<T, kM><<<grid, kStreamWarps * 32, 0, stream_of(context)>>>(p);
  check_launch("linear (stream)");
}

template <DType T, int kEach>
void launch_tile(KernelContext& context, const Products& p, int64_t rows, int64_t m) {
  constexpr int64_t kTile = kEach * 16;
  const dim3 grid(static_cast<unsigned>((rows + kTile - 1) / kTile),
                  static_cast<unsigned>(std::min<int64_t>((m + kTile - 1) / kTile, 65535)),
                  static_cast<unsigned>(p.count));
  tile_kernel<T, kEach><<<grid, kTileThreads, 0, stream_of(context)>>>(p);
  check_launch("linear (tile)");
}

// rows: the most rows of W of any product; m: about how many rows of x each has. Only the speed
// depends on m.
template <DType T>
void products_exact(KernelContext& context, const Products& p, int64_t rows, int64_t m) {
  if (p.count == 0 || rows == 0 || m == 0) return;
  if (m == 1) return launch_stream<T, 1>(context, p, rows, m);
  if (m <= 4) return launch_stream<T, 4>(context, p, rows, m);
  if (m <= 8) return launch_stream<T, 8>(context, p, rows, m);
  if (m <= 64 || rows <= 64) return launch_tile<T, 4>(context, p, rows, m);
  launch_tile<T, 8>(context, p, rows, m);
}

}  // namespace exact
}  // namespace tamis
