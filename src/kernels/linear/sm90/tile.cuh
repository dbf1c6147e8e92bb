// linear on Hopper's tensor cores, for many rows of x: the same sums as linear_native.cuh, bit for
// bit, through wgmma.
//
// y^T = W x^T. A cluster of two blocks has 256 rows of W and the same kXRows rows of x. In a block,
// two warpgroups multiply: 64 rows of W each, which they read from shared memory into registers
// (and there e4m3 becomes f16), by all rows of x, which wgmma reads from shared memory. A third
// copies 64 columns a stage, several stages ahead: rows of W by cp.async, for they may begin
// anywhere and end early; x by bulk copies, which each block sends to both. A block of 128 columns
// is eight products from zero in `sum`, added to `total` while the other warpgroup multiplies.
//
// x is prepared (prepare.cu) in atoms of 8 rows by 64 columns, 1,024 bytes: columns in the order of
// linear_native.cuh's steps (column 16t + 4s + 2h + e at 16s + 8h + 2t + e), 16-byte chunks
// exchanged by row as wgmma wants them. [columns / 64][rows / 8] atoms, so that a stage's are one
// copy; scales [columns / 128][rows].
//
// Bound by the tensor cores: 2 * m * rows * cols flops. Shared memory, a clock at full speed, for
// 192 rows of x: 64 bytes of x read by wgmma, 21 (FP8: 11) of W read, 53 (43) written, of 128. From
// L2: 37 (27) bytes.
#pragma once

#include <cstdlib>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/linear/sm90/work.cuh"
#include "kernels/linear/weight_rows.cuh"
#include "tensor/cuda/device.h"

namespace tamis::sm90 {

// The place in the ring of stages.
template <typename T>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == T::kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The copies, by the third warpgroup. A stage's rows of W are there when the copies begun kLag
// stages later are on their way: then each warp arrives once, for arrivals are counted one by one.
template <typename T>
class Copies {
 public:
  __device__ Copies(typename T::Shared& s, int rank, int arrivals)
      : s_(s), rank_(rank), arrivals_(arrivals) {}

  __device__ void tile(const Product& p, const Place& at, int x_rows) {
    const int tid = static_cast<int>(threadIdx.x) - kMultipliers * kWarpgroup;
    const int row = tid / T::kChunks, chunk = tid % T::kChunks;
    constexpr int kApart = kWarpgroup / T::kChunks, kCopies = kRows / kApart;
    const bool wide = native::wide_rows<T::kFp8>(p.w);
    const std::byte* from = p.w.data + (at.r0 + row) * p.w.row_bytes + chunk * 16;
    const int64_t row_step = p.w.row_bytes * kApart;
    const auto rows_left = static_cast<int>(min(p.w.rows - at.r0 - row, int64_t{kRows}));
    auto bytes_left = static_cast<int>(p.w.cols * T::kSize) - chunk * 16;
    // Each block sends half of the atoms to both.
    const int atoms =
        (static_cast<int>(min(p.m - at.m0, int64_t{x_rows})) + kAtomRows - 1) / kAtomRows;
    const int half = (atoms + 1) / kCluster, first = rank_ * half;
    const int own = rank_ == 0 ? half : atoms - half;
    const uint16_t* x = p.x + (at.m0 + first * kAtomRows) * kColumns;
    const float* scales = p.x_scales + at.m0;
    constexpr uint16_t kAll = (1 << kCluster) - 1;
    for (int step = 0; step < p.steps; ++step) {
      hopper::mbarrier_wait(&s_.empty[ring_.slot], ring_.parity ^ 1);
      uint64_t* full = &s_.full[ring_.slot];
      if (tid == 0) {
        const bool with_scales = T::kFp8 && step % 2 == 1;
        hopper::mbarrier_expect(full, atoms * (kAtomBytes + (with_scales ? 32 : 0)));
        if (own > 0) {
          hopper::bulk_copy(s_.x[ring_.slot] + first * kAtomBytes, x, own * kAtomBytes, full, kAll);
        }
        if (with_scales && rank_ == 0) {
          hopper::bulk_copy(s_.x_scales[ring_.slot], scales + step / 2 * p.x_rows, atoms * 32, full,
                            kAll);
        }
      }
      std::byte* to = s_.w[ring_.slot] + row * T::kPitch + chunk * 16;
      if (wide) {
        const std::byte* row_from = from;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          const bool inside = i * kApart < rows_left && bytes_left > 0;
          ptx::cp_async_16(to + i * kApart * T::kPitch, inside ? row_from : p.w.data, inside);
          row_from += row_step;
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < kCopies; ++i) {
          uint4 piece = make_uint4(0, 0, 0, 0);
          if (i * kApart < rows_left) {
            native::gather<T::kFp8, 16>(p.w, at.r0 + row + i * kApart,
                                        int64_t{step} * kColumns * T::kSize + chunk * 16, &piece);
          }
          *reinterpret_cast<uint4*>(to + i * kApart * T::kPitch) = piece;
        }
      }
      ptx::cp_async_commit();
      if (begun_ < kLag) {
        ++begun_;
      } else {
        ptx::cp_async_wait<kLag>();
        arrive();
      }
      from += kColumns * T::kSize;
      bytes_left -= kColumns * T::kSize;
      x += p.x_rows * kColumns;
      ring_.next();
    }
  }
  __device__ void finish() {
    ptx::cp_async_wait<0>();
    for (; begun_ > 0; --begun_) arrive();
  }

 private:
  static constexpr int kLag = T::kStages - 3;

  __device__ void arrive() {
    __syncwarp();
    if (static_cast<int>(threadIdx.x) % 32 < arrivals_) {
      hopper::mbarrier_arrive(&s_.full[arrived_.slot]);
    }
    arrived_.next();
  }

  typename T::Shared& s_;
  const int rank_, arrivals_;
  Ring<T> ring_, arrived_;  // the next stage to copy; the next one to say is there
  int begun_ = 0;           // stages between them
};

// W of two steps of 16 columns, as wgmma wants it in registers: quarter `q` of a block.
template <typename T>
struct WeightPart {
  uint32_t step[2][4];

  // Quarter q of a block from `rows`, the lane's row and columns in a stage's W; FP8 reads two at
  // once.
  static __device__ void fetch(const std::byte* rows, int q, uint4 (&raw)[2]) {
    if (T::kFp8 && q % 2 == 1) return;
    raw[0] = *reinterpret_cast<const uint4*>(rows + (T::kFp8 ? 0 : q % 2 * 16));
    raw[1] = *reinterpret_cast<const uint4*>(rows + 8 * T::kPitch + (T::kFp8 ? 0 : q % 2 * 16));
  }
  __device__ void convert(const uint4 (&raw)[2], int q) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (T::kFp8) {
        ptx::e4m3x4_to_f16x2(q % 2 == 0 ? raw[r].x : raw[r].z, &step[0][r], &step[0][r + 2]);
        ptx::e4m3x4_to_f16x2(q % 2 == 0 ? raw[r].y : raw[r].w, &step[1][r], &step[1][r + 2]);
      } else {
        step[0][r] = raw[r].x, step[0][r + 2] = raw[r].y;
        step[1][r] = raw[r].z, step[1][r + 2] = raw[r].w;
      }
    }
  }
  // Keeps the registers as they are until here.
  __device__ void hold() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) asm volatile("" : "+r"(step[i][k])::"memory");
    }
  }
};

// Scales of W for the thread's rows g and g + 8: their places in the first block of columns.
struct WeightScales {
  int at[2] = {};

  __device__ WeightScales(const Weight& w, int64_t row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      at[r] = static_cast<int>((min(row + 8 * r, w.rows - 1) + w.row_offset) / kFp8Block *
                                   w.scale_stride +
                               w.col_offset / kFp8Block);
    }
  }
  __device__ void load(const Weight& w, int block, float (&scale)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scale[r] = __ldg(reinterpret_cast<const float*>(w.scales) + (at[r] + block));
    }
  }
};

// Adds a block's sums to the totals.
template <typename T, int kN>
__device__ inline void add_block(const float* x_scales, const float (&w)[2],
                                 const float (&sum)[kN / 2], float (&total)[kN / 2]) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n) {
    if constexpr (T::kFp8) {
      const auto x = *reinterpret_cast<const float2*>(x_scales + 8 * n);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float* to = total + 4 * n + 2 * r;
        to[0] = fmaf(sum[4 * n + 2 * r], x.x * w[r], to[0]);
        to[1] = fmaf(sum[4 * n + 2 * r + 1], x.y * w[r], to[1]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) total[4 * n + k] += sum[4 * n + k];
    }
  }
}

template <int kN>
__device__ inline void store_tile(const Product& p, int64_t row, int64_t m0, bool round,
                                  const float (&total)[kN / 2]) {
  float* y = p.y + m0 * p.y_stride + row;
  const auto m_left = static_cast<int>(min(p.m - m0, int64_t{kN}));
  const auto rows_left = static_cast<int>(min(p.w.rows - row, int64_t{16}));
#pragma unroll
  for (int n = 0; n < kN / 8; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int m = 8 * n + k % 2, r = k / 2 * 8;
      const float v = total[4 * n + k];
      if (m < m_left && r < rows_left) y[m * p.y_stride + r] = round ? round_bf16(v) : v;
    }
  }
}

// The products of one tile with up to kN rows of x, by one warpgroup.
template <typename T, int kN>
__device__ inline void multiply_tile(const Product& p, const Place& at, bool round, Ring<T>& ring,
                                     typename T::Shared& s, int arrivals) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, g = lane / 4, t = lane % 4;
  const int row = tid / 32 * 16 + g;  // of the tile
  float sum[kN / 2], total[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = total[i] = 0;
  WeightPart<T> a[2];
  uint4 raw[2];
  const WeightScales scales(p.w, at.r0 + row);  // FP8
  const auto wait = [&] { hopper::mbarrier_wait(&s.full[ring.slot], ring.parity); };
  const auto fetch = [&](int q) {
    WeightPart<T>::fetch(s.w[ring.slot] + row * T::kPitch + t * T::kChunks * 4, q, raw);
  };
  const auto multiply = [&](int q, WeightPart<T>& part, uint64_t x) {
    hopper::wgmma_fence();
    hopper::Wgmma<T::kFp8, kN>::multiply(sum, part.step[0], x + q % 2 * 4, q > 0);
    hopper::Wgmma<T::kFp8, kN>::multiply(sum, part.step[1], x + q % 2 * 4 + 2, true);
    hopper::wgmma_commit();
  };
  const auto release = [&](int slot) {
    __syncwarp();
    if (arrivals == 1) {
      if (lane < kCluster) hopper::mbarrier_arrive_at(&s.empty[slot], lane);
    } else {
      for (int rank = 0; rank < kCluster; ++rank) hopper::mbarrier_arrive_at(&s.empty[slot], rank);
    }
  };
  const auto blocks = static_cast<int>(p.steps / 2);
  wait();
  fetch(0);
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    // While one quarter multiplies, the next one's registers are made ready and the one after that
    // is read.
    const int first = ring.slot;
    const uint64_t x = hopper::wgmma_operand(s.x[first]);
    a[0].convert(raw, 0);
    fetch(1);
    multiply(0, a[0], x);
    a[1].convert(raw, 1);
    ring.next();
    wait();
    fetch(2);
    multiply(1, a[1], x);
    const int second = ring.slot;
    const uint64_t x2 = hopper::wgmma_operand(s.x[second]);
    hopper::wgmma_wait<1>();
    a[0].hold();
    a[0].convert(raw, 2);
    fetch(3);
    multiply(2, a[0], x2);
    hopper::wgmma_wait<1>();
    a[1].hold();
    release(first);
    a[1].convert(raw, 3);
    ring.next();
    if (block + 1 < blocks) {
      wait();
      fetch(0);
    }
    multiply(3, a[1], x2);
    float w[2];
    if constexpr (T::kFp8) scales.load(p.w, block, w);
    hopper::wgmma_wait<0>();
    a[0].hold();
    a[1].hold();
    add_block<T, kN>(s.x_scales[second] + 2 * t, w, sum, total);
    release(second);
  }
  store_tile<kN>(p, at.r0 + row, at.m0 + 2 * t, round, total);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(kCluster, 1, 1)
    tile_kernel(const __grid_constant__ NativeProducts products, int x_rows, int arrivals) {
  extern __shared__ __align__(1024) std::byte shared[];
  auto& s = *reinterpret_cast<typename T::Shared*>(shared);
  const int rank = hopper::cluster_rank();
  number_tiles(products, x_rows, s.first_tile);
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      // The copying warps and the thread that expects x; every multiplying warp of the cluster.
      hopper::mbarrier_init(&s.full[i], kWarpgroup / 32 * arrivals + 1);
      hopper::mbarrier_init(&s.empty[i], kMultipliers * 4 * kCluster * arrivals);
    }
    hopper::fence_mbarrier_init();
  }
  hopper::cluster_sync();
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  const int first = static_cast<int>(blockIdx.x) / kCluster;
  const int tiles = s.first_tile[products.count];
  if (threadIdx.x >= kMultipliers * kWarpgroup) {
    hopper::fewer_registers<40>();
    Copies<T> copies(s, rank, arrivals);
    for (int tile = first; tile < tiles; tile += clusters) {
      const Place at = place_of(products, x_rows, s.first_tile, tile, rank);
      copies.tile(product(products, at.product), at, x_rows);
    }
    copies.finish();
  } else {
    hopper::more_registers<232>();
    Ring<T> ring;
    for (int tile = first; tile < tiles; tile += clusters) {
      const Place at = place_of(products, x_rows, s.first_tile, tile, rank);
      const Product p = product(products, at.product);
      const auto rows = static_cast<int>(min(p.m - at.m0, int64_t{x_rows}));
      const bool round = products.round_bf16;
      if (rows <= 64) {
        multiply_tile<T, 64>(p, at, round, ring, s, arrivals);
      } else if (rows <= 128) {
        multiply_tile<T, 128>(p, at, round, ring, s, arrivals);
      } else if (rows <= 160) {
        multiply_tile<T, 160>(p, at, round, ring, s, arrivals);
      } else if (rows <= 176) {
        multiply_tile<T, 176>(p, at, round, ring, s, arrivals);
      } else {
        multiply_tile<T, 192>(p, at, round, ring, s, arrivals);
      }
    }
  }
  hopper::cluster_sync();  // a block's copies and arrivals may still be on their way to the other
}

// Lanes of a warp that say at a barrier what all of them have done: one, behind __syncwarp, which
// racecheck does not follow. With TAMIS_RACECHECK=1 in the environment each lane speaks for itself.
inline int arrivals_of_warp() {
  static const int arrivals = std::getenv("TAMIS_RACECHECK") == nullptr ? 1 : 32;
  return arrivals;
}

template <typename T>
void launch_tiles(KernelContext& context, const NativeProducts& p) {
  if (p.count == 0) return;
  constexpr auto kBytes = static_cast<int>(sizeof(typename T::Shared));
  const int clusters = context.device()->info().multiprocessors / kCluster;
  allow_shared(reinterpret_cast<const void*>(tile_kernel<T>), kBytes, "linear (sm90)");
  tile_kernel<T>
      <<<static_cast<unsigned>(clusters * kCluster), kThreads, kBytes, stream_of(context)>>>(
          p, choose_x_rows(p, clusters), arrivals_of_warp());
  check_launch("linear (sm90)");
}

}  // namespace tamis::sm90
