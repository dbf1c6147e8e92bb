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
// exchanged by row as wgmma wants them. [rows / 8][columns / 64] atoms; scales [columns /
// 128][rows].
//
// Bound by the tensor cores: 2 * m * rows * cols flops. Shared memory, a clock at full speed, for
// 192 rows of x: 64 bytes of x read by wgmma, 21 (FP8: 11) of W read, 53 (43) written, of 128. From
// L2: 37 (27) bytes.
#pragma once

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/linear/sm90/work.cuh"
#include "kernels/linear/weight_rows.cuh"

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

// The copies of one tile, by the third warpgroup.
template <typename T>
__device__ inline void copy_tile(const Product& p, const Place& at, int x_rows, int rank,
                                 Ring<T>& ring, typename T::Shared& s) {
  const int tid = static_cast<int>(threadIdx.x) - kMultipliers * kWarpgroup;
  const int row = tid / T::kChunks, chunk = tid % T::kChunks;
  constexpr int kApart = kWarpgroup / T::kChunks, kCopies = kRows / kApart;
  const bool wide = native::wide_rows<T::kFp8>(p.w);
  const std::byte* from = p.w.data + (at.r0 + row) * p.w.row_bytes + chunk * 16;
  const int64_t row_step = p.w.row_bytes * kApart;
  const auto rows_left = static_cast<int>(min(p.w.rows - at.r0 - row, int64_t{kRows}));
  auto bytes_left = static_cast<int>(p.w.cols * T::kSize) - chunk * 16;
  const int atoms =
      (static_cast<int>(min(p.m - at.m0, int64_t{x_rows})) + kAtomRows - 1) / kAtomRows;
  const int atom = tid * kCluster + rank;  // of this lane
  const auto* x =
      reinterpret_cast<const std::byte*>(p.x) + ((at.m0 / kAtomRows + atom) * p.steps) * kAtomBytes;
  const float* scales = p.x_scales + at.m0;
  constexpr auto kAll = static_cast<uint16_t>((1 << kCluster) - 1);
  for (int step = 0; step < p.steps; ++step) {
    hopper::mbarrier_wait(&s.empty[ring.slot], ring.parity ^ 1);
    uint64_t* full = &s.full[ring.slot];
    const bool with_scales = T::kFp8 && step % 2 == 1;
    if (tid == 0) hopper::mbarrier_expect(full, atoms * (kAtomBytes + (with_scales ? 32 : 0)));
    if (tid < 31 && atom < atoms) {
      hopper::bulk_copy(s.x[ring.slot] + atom * kAtomBytes, x, kAtomBytes, full, kAll);
    }
    if (with_scales && tid == 31 && rank == 0) {
      hopper::bulk_copy(s.x_scales[ring.slot], scales + step / 2 * p.scale_stride, atoms * 32, full,
                        kAll);
    }
    std::byte* to = s.w[ring.slot] + row * T::kPitch + chunk * 16;
    if (wide) {
      const std::byte* row_from = from;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const bool inside = i * kApart < rows_left && bytes_left > 0;
        ptx::cp_async_16(to + i * kApart * T::kPitch, inside ? row_from : p.w.data, inside);
        row_from += row_step;
      }
      hopper::mbarrier_arrive_after_copies(full);
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
      hopper::mbarrier_arrive(full);
    }
    from += kColumns * T::kSize;
    bytes_left -= kColumns * T::kSize;
    x += kAtomBytes;
    ring.next();
  }
}

// W of two steps of 16 columns, as wgmma wants it in registers: quarter `q` of a block.
template <typename T>
struct WeightPart {
  uint32_t step[2][4];

  // `rows`: the lane's row and columns in a stage's W. FP8 keeps four steps in `raw`.
  __device__ void load(const std::byte* rows, int q, uint4 (&raw)[2]) {
    if constexpr (T::kFp8) {
      if (q % 2 == 0) {
        raw[0] = *reinterpret_cast<const uint4*>(rows);
        raw[1] = *reinterpret_cast<const uint4*>(rows + 8 * T::kPitch);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        ptx::e4m3x4_to_f16x2(q % 2 == 0 ? raw[r].x : raw[r].z, &step[0][r], &step[0][r + 2]);
        ptx::e4m3x4_to_f16x2(q % 2 == 0 ? raw[r].y : raw[r].w, &step[1][r], &step[1][r + 2]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4 v = *reinterpret_cast<const uint4*>(rows + r * 8 * T::kPitch + q % 2 * 16);
        step[0][r] = v.x, step[0][r + 2] = v.y;
        step[1][r] = v.z, step[1][r + 2] = v.w;
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
                                     typename T::Shared& s) {
  const int tid = static_cast<int>(threadIdx.x), group = tid / kWarpgroup;
  const int lane = tid % 32, g = lane / 4, t = lane % 4;
  const int row = tid / 32 * 16 + g;  // of the tile
  const auto rows_at = [&] { return s.w[ring.slot] + row * T::kPitch + t * T::kChunks * 4; };
  const auto release = [&](int slot) {
    __syncwarp();
    if (lane < kCluster) hopper::mbarrier_arrive_at(&s.empty[slot], lane);
  };
  float sum[kN / 2], total[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = total[i] = 0;
  WeightPart<T> a[2];
  uint4 raw[2];
  const WeightScales scales(p.w, at.r0 + row);  // FP8
  const auto multiply = [&](int q, WeightPart<T>& part, uint64_t x) {
    hopper::wgmma_fence();
    hopper::Wgmma<T::kFp8, kN>::multiply(sum, part.step[0], x + q % 2 * 4, q > 0);
    hopper::Wgmma<T::kFp8, kN>::multiply(sum, part.step[1], x + q % 2 * 4 + 2, true);
    hopper::wgmma_commit();
  };
  const auto blocks = static_cast<int>(p.steps / 2);
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    hopper::mbarrier_wait(&s.full[ring.slot], ring.parity);
    const uint64_t x = hopper::wgmma_operand(s.x[ring.slot]);
    a[0].load(rows_at(), 0, raw);
    if constexpr (T::kTurns) hopper::named_wait(1 + group, 2 * kWarpgroup);
    multiply(0, a[0], x);
    a[1].load(rows_at(), 1, raw);
    multiply(1, a[1], x);
    const int first_slot = ring.slot;
    ring.next();
    hopper::mbarrier_wait(&s.full[ring.slot], ring.parity);
    hopper::wgmma_wait<1>();
    a[0].hold();
    const uint64_t x2 = hopper::wgmma_operand(s.x[ring.slot]);
    a[0].load(rows_at(), 2, raw);
    multiply(2, a[0], x2);
    hopper::wgmma_wait<1>();
    a[1].hold();
    release(first_slot);
    a[1].load(rows_at(), 3, raw);
    multiply(3, a[1], x2);
    if constexpr (T::kTurns) hopper::named_arrive(1 + (group ^ 1), 2 * kWarpgroup);
    float w[2];
    if constexpr (T::kFp8) scales.load(p.w, block, w);
    hopper::wgmma_wait<0>();
    a[0].hold();
    a[1].hold();
    add_block<T, kN>(s.x_scales[ring.slot] + 2 * t, w, sum, total);
    release(ring.slot);
    ring.next();
  }
  store_tile<kN>(p, at.r0 + row, at.m0 + 2 * t, round, total);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(kCluster, 1, 1)
    tile_kernel(const __grid_constant__ NativeProducts products, int x_rows) {
  extern __shared__ __align__(1024) std::byte shared[];
  auto& s = *reinterpret_cast<typename T::Shared*>(shared);
  const int rank = hopper::cluster_rank();
  number_tiles(products, x_rows, s.first_tile);
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      // The copying threads and the one that expects x; every multiplying warp of the cluster.
      hopper::mbarrier_init(&s.full[i], kWarpgroup + 1);
      hopper::mbarrier_init(&s.empty[i], kMultipliers * 4 * kCluster);
    }
    hopper::fence_mbarrier_init();
  }
  hopper::cluster_sync();
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  const int first = static_cast<int>(blockIdx.x) / kCluster;
  const int tiles = s.first_tile[products.count];
  Ring<T> ring;
  if (threadIdx.x >= kMultipliers * kWarpgroup) {
    hopper::fewer_registers<40>();
    for (int tile = first; tile < tiles; tile += clusters) {
      const Place at = place_of(products, x_rows, s.first_tile, tile, rank);
      copy_tile<T>(product(products, at.product), at, x_rows, rank, ring, s);
    }
  } else {
    hopper::more_registers<232>();
    if constexpr (T::kTurns) {
      if (threadIdx.x >= kWarpgroup) hopper::named_arrive(1, 2 * kWarpgroup);
    }
    for (int tile = first; tile < tiles; tile += clusters) {
      const Place at = place_of(products, x_rows, s.first_tile, tile, rank);
      const Product p = product(products, at.product);
      const auto rows = static_cast<int>(min(p.m - at.m0, int64_t{x_rows}));
      const bool round = products.round_bf16;
      if (rows <= 64) {
        multiply_tile<T, 64>(p, at, round, ring, s);
      } else if (rows <= 128) {
        multiply_tile<T, 128>(p, at, round, ring, s);
      } else if (rows <= 160) {
        multiply_tile<T, 160>(p, at, round, ring, s);
      } else if (rows <= 176) {
        multiply_tile<T, 176>(p, at, round, ring, s);
      } else {
        multiply_tile<T, 192>(p, at, round, ring, s);
      }
    }
    if constexpr (T::kTurns) {
      if (threadIdx.x < kWarpgroup) hopper::named_wait(1, 2 * kWarpgroup);
    }
  }
  hopper::cluster_sync();  // a block's copies and arrivals may still be on their way to the other
}

template <typename T>
void launch_tiles(KernelContext& context, const NativeProducts& p) {
  if (p.count == 0) return;
  constexpr auto kBytes = static_cast<int>(sizeof(typename T::Shared));
  const int clusters = context.device()->info().multiprocessors / kCluster;
  allow_shared(reinterpret_cast<const void*>(tile_kernel<T>), kBytes, "linear (sm90)");
  tile_kernel<T>
      <<<static_cast<unsigned>(clusters * kCluster), kThreads, kBytes, stream_of(context)>>>(
          p, choose_x_rows(p, clusters));
  check_launch("linear (sm90)");
}

}  // namespace tamis::sm90
