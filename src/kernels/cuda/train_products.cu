// A block makes a tile of c from tiles of 32 k: both operands are read into registers a step ahead,
// taken apart and stored to shared memory as bf16, high and low, in the order in which they lie;
// ldmatrix turns them where they lie the other way.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/train_products.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kStep = 32, kThreads = 256, kWarps = kThreads / 32;

// One operand's tile of kWide (of m or n) times kStep. kByK: its rows go by k.
template <int kParts, int kWide, bool kByK>
struct Tile {
  static constexpr bool kRowsByK = kByK;
  static constexpr int kRows = kByK ? kStep : kWide, kColumns = kByK ? kWide : kStep;
  static constexpr int kPitch = kColumns + 8;  // ldmatrix then meets no bank twice
  static constexpr int kSlots = kRows * kColumns / 4, kMine = (kSlots + kThreads - 1) / kThreads;
  uint16_t part[kParts][kRows * kPitch];

  // Rows [row0, rows) and columns [column0, columns) of the operand.
  struct From {
    const float *x, *then;
    const int32_t* rows;
    int64_t stride, split;
    int row0, row_end, column0, column_end;
    bool aligned;
  };

  __device__ static void load(const From& f, float4 (&v)[kMine]) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      v[i] = make_float4(0, 0, 0, 0);
      const int slot = static_cast<int>(threadIdx.x) + i * kThreads;
      const int row = f.row0 + slot / (kColumns / 4);
      const int column = f.column0 + slot % (kColumns / 4) * 4;
      if (slot >= kSlots || row >= f.row_end || column >= f.column_end) continue;
      const int64_t at = f.rows == nullptr ? row : f.rows[row];
      const bool first = at < f.split;
      if (at < 0 || (!first && f.then == nullptr)) continue;
      const float* x = (first ? f.x + at * f.stride : f.then + (at - f.split) * f.stride) + column;
      if (f.aligned && column + 4 <= f.column_end) {
        v[i] = *reinterpret_cast<const float4*>(x);
      } else {
        v[i].x = x[0];
        if (column + 1 < f.column_end) v[i].y = x[1];
        if (column + 2 < f.column_end) v[i].z = x[2];
        if (column + 3 < f.column_end) v[i].w = x[3];
      }
    }
  }

  __device__ static uint32_t rest(float low, float high, uint32_t packed) {
    return ptx::pack_bf16(low - __uint_as_float(packed << 16),
                          high - __uint_as_float(packed & 0xFFFF0000u));
  }

  __device__ void store(const float4 (&v)[kMine]) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int slot = static_cast<int>(threadIdx.x) + i * kThreads;
      if (slot >= kSlots) continue;
      const int at = slot / (kColumns / 4) * kPitch + slot % (kColumns / 4) * 4;
      const uint2 high{ptx::pack_bf16(v[i].x, v[i].y), ptx::pack_bf16(v[i].z, v[i].w)};
      *reinterpret_cast<uint2*>(part[0] + at) = high;
      if constexpr (kParts == 1) continue;
      const uint2 low{rest(v[i].x, v[i].y, high.x), rest(v[i].z, v[i].w, high.y)};
      *reinterpret_cast<uint2*>(part[kParts - 1] + at) = low;
    }
  }

  // The 16 x 16 values from `wide` and `k` on as a factor of mma: of the left one [m, k], or two of
  // the right one [k, n]: registers 0 and 1 of n 0..7, then 2 and 3 of n 8..15.
  template <bool kLeft>
  __device__ void fragment(int p, int wide, int k, uint32_t (&r)[4]) const {
    const int lane = threadIdx.x % 32, in = lane % 8, first = lane / 8 % 2 * 8,
              second = lane / 16 * 8;
    const int w = wide + (kByK ? 0 : in) + (kLeft ? first : second);
    const int d = k + (kByK ? in : 0) + (kLeft ? second : first);
    if constexpr (kByK) {
      ptx::ldmatrix_x4_trans(r, part[p] + d * kPitch + w);
    } else {
      ptx::ldmatrix_x4(r, part[p] + w * kPitch + d);
    }
  }
};

// Where the sum stands.
struct Place {
  int term, outer, k;
};

template <int kParts, int kM, int kN, bool kAByK, bool kBByK>
struct Shared {
  struct {
    Tile<kParts, kM, kAByK> a;
    Tile<kParts, kN, kBByK> b;
  } step[2];
};

__device__ inline bool aligned(const ProductOperand& x) {
  const auto address = reinterpret_cast<uintptr_t>(x.x) | reinterpret_cast<uintptr_t>(x.then);
  return (address / 4 | x.row | x.z | x.outer) % 4 == 0;
}

template <typename Tile>
__device__ void load_operand(const ProductOperand& x, int64_t z, int outer, int wide0, int64_t wide,
                             int k0, int k_end, float4 (&v)[Tile::kMine]) {
  const int32_t* rows = x.rows == nullptr ? nullptr : x.rows + z * x.rows_z;
  const int64_t skip = z * x.z + outer * x.outer;
  typename Tile::From f{x.x + skip, x.then == nullptr ? nullptr : x.then + skip, rows, x.row,
                        x.split};
  const int wide_end = static_cast<int>(wide);
  f.row0 = Tile::kRowsByK ? k0 : wide0;
  f.row_end = Tile::kRowsByK ? k_end : wide_end;
  f.column0 = Tile::kRowsByK ? wide0 : k0;
  f.column_end = Tile::kRowsByK ? wide_end : k_end;
  f.aligned = aligned(x);
  Tile::load(f, v);
}

template <int kParts, int kM, int kN, int kWarpsM, int kBlocks, bool kAByK, bool kBByK>
__global__ void __launch_bounds__(kThreads, kBlocks) products_kernel(const TrainProducts p) {
  constexpr int kWarpsN = kWarps / kWarpsM, kOwnM = kM / kWarpsM, kOwnN = kN / kWarpsN;
  constexpr int kTilesM = kOwnM / 16, kTilesN = kOwnN / 16;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& s = *reinterpret_cast<Shared<kParts, kM, kN, kAByK, kBByK>*>(bytes);
  const int64_t z = blockIdx.z;
  const int n0 = static_cast<int>(blockIdx.x) * kN, m0 = static_cast<int>(blockIdx.y) * kM;
  const int offset = static_cast<int>(p.offset);
  if (p.causal == Causal::kScores && n0 > offset + m0 + kM - 1) return;
  const int k_begin = p.causal == Causal::kQueries ? max(0, m0 - offset) / kStep * kStep : 0;
  const auto k_end = [&](int term) {
    const int k = static_cast<int>(p.term[term].k);
    return p.causal == Causal::kKeys ? min(k, offset + m0 + kM) : k;
  };

  float sum[kTilesM][kTilesN][2][4] = {};
  using A = Tile<kParts, kM, kAByK>;
  using B = Tile<kParts, kN, kBByK>;
  float4 a[A::kMine], b[B::kMine];
  const auto load = [&](const Place& at) {
    const ProductTerm& t = p.term[at.term];
    load_operand<A>(t.a, z, at.outer, m0, p.m, at.k, k_end(at.term), a);
    load_operand<B>(t.b, z, at.outer, n0, p.n, at.k, k_end(at.term), b);
  };
  const auto settle = [&](Place* at) {  // at the next place with something to add, or at the end
    while (at->term < p.terms && at->k >= k_end(at->term)) {
      at->k = k_begin;
      if (++at->outer < p.term[at->term].outer && k_begin < k_end(at->term)) continue;
      at->outer = 0;
      ++at->term;
    }
  };
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int own_m = warp / kWarpsN * kOwnM, own_n = warp % kWarpsN * kOwnN;
  Place at{0, 0, k_begin};
  settle(&at);
  if (at.term < p.terms) load(at);
  for (int turn = 0; at.term < p.terms; turn ^= 1) {
    auto& now = s.step[turn];
    now.a.store(a);
    now.b.store(b);
    __syncthreads();  // what the other half held is multiplied: the step before this one stored
                      // here
    const int left = k_end(at.term) - at.k;
    at.k += kStep;
    settle(&at);
    if (at.term < p.terms) load(at);
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      if (k >= left) break;
      uint32_t right[kTilesN][kParts][4];
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        now.b.template fragment<false>(0, own_n + j * 16, k, right[j][0]);
        if (kParts == 2) {
          now.b.template fragment<false>(kParts - 1, own_n + j * 16, k, right[j][kParts - 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        uint32_t high[4], low[4];
        now.a.template fragment<true>(0, own_m + i * 16, k, high);
        if (kParts == 2) now.a.template fragment<true>(kParts - 1, own_m + i * 16, k, low);
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            if (kParts == 2) {
              const uint32_t(&rest)[4] = right[j][kParts - 1];
              mma_bf16(sum[i][j][h], low, right[j][0][2 * h], right[j][0][2 * h + 1]);
              mma_bf16(sum[i][j][h], high, rest[2 * h], rest[2 * h + 1]);
            }
            mma_bf16(sum[i][j][h], high, right[j][0][2 * h], right[j][0][2 * h + 1]);
          }
        }
      }
    }
  }

  const int lane = threadIdx.x % 32;
  float* c = p.c + z * p.c_z;
#pragma unroll
  for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int m = m0 + own_m + i * 16 + lane / 4 + e % 4 / 2 * 8;
        const int n = n0 + own_n + j * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2;
        if (m >= p.m || n >= p.n) continue;
        float* to = c + m * p.c_row + n;
        *to = p.add ? *to + sum[i][j][e / 4][e % 4] : sum[i][j][e / 4][e % 4];
      }
    }
  }
}

template <int kParts, int kM, int kN, int kWarpsM, int kBlocks, bool kAByK, bool kBByK>
void launch(KernelContext& context, const TrainProducts& p) {
  const auto kernel = products_kernel<kParts, kM, kN, kWarpsM, kBlocks, kAByK, kBByK>;
  const int bytes = sizeof(Shared<kParts, kM, kN, kAByK, kBByK>);
  allow_shared(reinterpret_cast<const void*>(kernel), bytes, "products");
  const dim3 grid(static_cast<unsigned>((p.n + kN - 1) / kN),
                  static_cast<unsigned>((p.m + kM - 1) / kM), static_cast<unsigned>(p.batch));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(p);
  check_launch("products");
}

template <int kParts, bool kAByK, bool kBByK>
void run(KernelContext& context, const TrainProducts& p) {
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  if (p.m <= 16) return launch<kParts, 16, 128, 1, 4, kAByK, kBByK>(context, p);
  const int64_t tiles = (p.m + 127) / 128 * ((p.n + 127) / 128) * p.batch;
  const bool few = tiles < 2 * int64_t{context.device()->info().multiprocessors};
  if (p.m <= 64 || p.n <= 64 || few) return launch<kParts, 64, 64, 2, 3, kAByK, kBByK>(context, p);
  launch<kParts, 128, 128, 2, 1, kAByK, kBByK>(context, p);
}

bool always(const TrainProducts&) { return true; }

template <bool kAByK, bool kBByK>
constexpr Implementation<TrainProducts> kList[] = {
    {"cuda", always, run<2, kAByK, kBByK>},
    {"cuda_bf16", always, run<1, kAByK, kBByK>},
};

template <bool kAByK, bool kBByK>
void multiply(KernelContext& context, const TrainProducts& p) {
  dispatch<TrainProducts>(context, "train_products", kList<kAByK, kBByK>, p);
}

}  // namespace

void products_m_n(KernelContext& context, const TrainProducts& p) {
  multiply<false, false>(context, p);
}
void products_m_k(KernelContext& context, const TrainProducts& p) {
  multiply<false, true>(context, p);
}
void products_k_k(KernelContext& context, const TrainProducts& p) {
  multiply<true, true>(context, p);
}

}  // namespace tamis
