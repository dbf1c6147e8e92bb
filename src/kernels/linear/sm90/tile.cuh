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
#include "kernels/linear/sm90/config.cuh"
#include "kernels/linear/weight_rows.cuh"

namespace tamis::sm90 {

// A product as its tiles need it.
struct Product {
  const uint16_t* x;      // its first atom
  const float* x_scales;  // of its first row, in the first block of columns
  int64_t scale_stride;   // floats from one block of columns to the next
  int64_t m, steps;       // steps of 64 columns
  Weight w;
  float* y;
  int64_t y_stride;
};

__device__ inline Product product(const NativeProducts& all, int i) {
  const NativeProduct& p = all.list[all.offsets == nullptr ? i : 0];
  Product out{p.x,
              p.x_scales,
              atom_rows(p.m, all.offsets == nullptr ? 0 : all.count),
              p.m,
              p.x_stride / kColumns,
              p.w,
              p.y,
              p.y_stride};
  if (all.offsets == nullptr) return out;
  const int64_t first = all.offsets[i], begin = first_atom_row(first, i);
  out.x += begin * p.x_stride;
  out.x_scales += begin;
  out.m = all.offsets[i + 1] - first;
  out.w = all.weights[i];
  out.y += first * p.y_stride;
  return out;
}

__device__ inline int64_t rows_of(const NativeProducts& all, int i) {
  return all.offsets == nullptr ? all.list[i].w.rows : all.weights[i].rows;
}
__device__ inline int64_t m_of(const NativeProducts& all, int i) {
  return all.offsets == nullptr ? all.list[i].m : all.offsets[i + 1] - all.offsets[i];
}

// first[i] = tiles of the products before i, for the whole block.
template <typename T>
__device__ inline void number_tiles(const NativeProducts& all, int* first) {
  for (int i = static_cast<int>(threadIdx.x); i < all.count; i += kThreads) {
    const int64_t down = (rows_of(all, i) + kRows * T::kCluster - 1) / (kRows * T::kCluster);
    first[i + 1] = static_cast<int>(down * ((m_of(all, i) + T::kXRows - 1) / T::kXRows));
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    int before = 0;
    for (int base = 0; base < all.count; base += 32) {
      int n = base + lane < all.count ? first[base + lane + 1] : 0;
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFFu, n, d);
        if (lane >= d) n += other;
      }
      if (base + lane < all.count) first[base + lane + 1] = before + n;
      before += __shfl_sync(0xFFFFFFFFu, n, 31);
    }
    if (lane == 0) first[0] = 0;
  }
  __syncthreads();
}

struct Place {
  int product;
  int64_t r0, m0;  // first row of W of this block, first row of x
};

// Tile `tile` of the launch. Clusters that run together share rows of x and of W: eight tiles of
// x by one of W, then the next of W.
template <typename T>
__device__ inline Place place_of(const NativeProducts& all, const int* first, int tile, int rank) {
  int low = 0, high = all.count;  // first[low] <= tile < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first[middle] <= tile ? low : high) = middle;
  }
  constexpr int kSide = 8;
  const auto across = static_cast<int>((m_of(all, low) + T::kXRows - 1) / T::kXRows);
  const int down = (first[low + 1] - first[low]) / across, n = tile - first[low];
  const int band = n / (kSide * down), in_band = n % (kSide * down);
  const int side = min(kSide, across - band * kSide);
  return {low, (int64_t{in_band / side} * T::kCluster + rank) * kRows,
          int64_t{band * kSide + in_band % side} * T::kXRows};
}

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
__device__ inline void copy_tile(const Product& p, const Place& at, int rank, Ring<T>& ring,
                                 typename T::Shared& s) {
  const int tid = static_cast<int>(threadIdx.x) - kMultipliers * kWarpgroup;
  const int row = tid / T::kChunks, chunk = tid % T::kChunks;
  constexpr int kApart = kWarpgroup / T::kChunks, kCopies = kRows / kApart;
  const bool wide = native::wide_rows<T::kFp8>(p.w);
  const std::byte* from = p.w.data + (at.r0 + row) * p.w.row_bytes + chunk * 16;
  const int64_t row_step = p.w.row_bytes * kApart;
  const auto rows_left = static_cast<int>(min(p.w.rows - at.r0 - row, int64_t{kRows}));
  auto bytes_left = static_cast<int>(p.w.cols * T::kSize) - chunk * 16;
  const int atoms =
      static_cast<int>(min(p.m - at.m0 + kAtomRows - 1, int64_t{T::kXRows}) / kAtomRows);
  const int atom = tid * T::kCluster + rank;  // of this lane
  const auto* x =
      reinterpret_cast<const std::byte*>(p.x) + ((at.m0 / kAtomRows + atom) * p.steps) * kAtomBytes;
  const float* scales = p.x_scales + at.m0;
  constexpr auto kAll = static_cast<uint16_t>((1 << T::kCluster) - 1);
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

// Scales of W for the thread's rows g and g + 8, one block of columns ahead.
struct WeightScales {
  const float *at[2] = {}, *now[2] = {};
  float next[2] = {};

  __device__ void start(const Weight& w, int64_t row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      at[r] = reinterpret_cast<const float*>(w.scales) +
              (min(row + 8 * r, w.rows - 1) + w.row_offset) / kFp8Block * w.scale_stride +
              w.col_offset / kFp8Block;
      next[r] = __ldg(at[r]);
    }
  }
  __device__ void take(bool more, float (&scale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scale[r] = next[r];
      if (more) next[r] = __ldg(++at[r]);
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
    if (lane < T::kCluster) hopper::mbarrier_arrive_at(&s.empty[slot], lane);
  };
  float sum[kN / 2], total[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = total[i] = 0;
  WeightPart<T> a[2];
  uint4 raw[2];
  WeightScales scales;
  if constexpr (T::kFp8) scales.start(p.w, at.r0 + row);
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
    if constexpr (T::kFp8) scales.take(block + 1 < blocks, w);
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
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(T::kCluster, 1, 1)
    tile_kernel(const __grid_constant__ NativeProducts products) {
  extern __shared__ __align__(1024) std::byte shared[];
  auto& s = *reinterpret_cast<typename T::Shared*>(shared);
  const int rank = hopper::cluster_rank();
  number_tiles<T>(products, s.first_tile);
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      // The copying threads and the one that expects x; every multiplying warp of the cluster.
      hopper::mbarrier_init(&s.full[i], kWarpgroup + 1);
      hopper::mbarrier_init(&s.empty[i], kMultipliers * 4 * T::kCluster);
    }
    hopper::fence_mbarrier_init();
  }
  hopper::cluster_sync();
  const int clusters = static_cast<int>(gridDim.x) / T::kCluster;
  const int first = static_cast<int>(blockIdx.x) / T::kCluster;
  const int tiles = s.first_tile[products.count];
  Ring<T> ring;
  if (threadIdx.x >= kMultipliers * kWarpgroup) {
    hopper::fewer_registers<40>();
    for (int tile = first; tile < tiles; tile += clusters) {
      const Place at = place_of<T>(products, s.first_tile, tile, rank);
      copy_tile<T>(product(products, at.product), at, rank, ring, s);
    }
  } else {
    hopper::more_registers<232>();
    if constexpr (T::kTurns) {
      if (threadIdx.x >= kWarpgroup) hopper::named_arrive(1, 2 * kWarpgroup);
    }
    for (int tile = first; tile < tiles; tile += clusters) {
      const Place at = place_of<T>(products, s.first_tile, tile, rank);
      const Product p = product(products, at.product);
      const int64_t left = p.m - at.m0;
      if (left <= 64) {
        multiply_tile<T, 64>(p, at, products.round_bf16, ring, s);
      } else if (T::kXRows == 128 || left <= 128) {
        multiply_tile<T, 128>(p, at, products.round_bf16, ring, s);
      } else {
        multiply_tile<T, T::kXRows>(p, at, products.round_bf16, ring, s);
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
  const int blocks = context.device()->info().multiprocessors / T::kCluster * T::kCluster;
  allow_shared(reinterpret_cast<const void*>(tile_kernel<T>), kBytes, "linear (sm90)");
  tile_kernel<T><<<static_cast<unsigned>(blocks), kThreads, kBytes, stream_of(context)>>>(p);
  check_launch("linear (sm90)");
}

}  // namespace tamis::sm90
