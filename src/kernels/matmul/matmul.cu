// matmul and grouped_matmul on CUDA cores, float32, fma in float32: many products a launch.
//
// A block of 256 threads computes a tile of 128x128 or 64x64 of C, 8x8 or 4x4 a thread, or for the
// narrow ones of 128x16 or 16x128, 16 inner indices in shared memory at a time while the next ones
// are on their way in registers. The strides are used up in the copies to shared memory: lines
// there lie along the inner index, whichever way A and B lie. Bound by fma: 2 m n inner flops.
// matmul_parts.cuh has the rest.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/matmul/matmul_impl.h"
#include "kernels/matmul/matmul_parts.cuh"

namespace tamis {
namespace tiled {
namespace {

constexpr int kStep = 16;  // inner indices in shared memory at a time

template <int kTile>
using Stage = float[kStep][kTile + 4];

template <int kTile>
__device__ inline void store_quad(bool along, int q, const float4& v, Stage<kTile>& to) {
  if (along) {
    const int line = q / (kStep / 4), k = q % (kStep / 4) * 4;
    to[k][line] = v.x, to[k + 1][line] = v.y, to[k + 2][line] = v.z, to[k + 3][line] = v.w;
  } else {
    *reinterpret_cast<float4*>(&to[q / (kTile / 4)][q % (kTile / 4) * 4]) = v;
  }
}

// ---- the tile

// Line i of a thread's kEach of a tile's kEach * 16: fours side by side.
template <int kEach>
__device__ inline int line_of(int thread, int i) {
  return kEach == 1 ? thread : i / 4 * 64 + thread * 4 + i % 4;
}

template <int kEach>
__device__ inline void read_lines(const float* from, int thread, float (&v)[kEach]) {
  if constexpr (kEach == 1) {
    v[0] = from[thread];
  } else {
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      const float4 q = *reinterpret_cast<const float4*>(from + line_of<kEach>(thread, i));
      v[i] = q.x, v[i + 1] = q.y, v[i + 2] = q.z, v[i + 3] = q.w;
    }
  }
}

template <int kRows, int kColumns>
__device__ inline void multiply(const Stage<kRows * 16>& a, const Stage<kColumns * 16>& b, int ty,
                                int tx, float (&sum)[kRows][kColumns]) {
#pragma unroll
  for (int k = 0; k < kStep; ++k) {
    float x[kRows], y[kColumns];
    read_lines(a[k], ty, x);
    read_lines(b[k], tx, y);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
  }
}

template <int kRows, int kColumns>
__device__ inline void write_tile(const Work& w, int ty, int tx,
                                  const float (&sum)[kRows][kColumns]) {
  constexpr int kOnce = kColumns < 4 ? kColumns : 4;
  const MatmulArgs<float>& p = w.p;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = w.row + line_of<kRows>(ty, i);
    if (row >= p.m) continue;
#pragma unroll
    for (int j = 0; j < kColumns; j += kOnce) {
      const int64_t col = w.col + line_of<kColumns>(tx, j);
      float* c = p.c + row * p.c_row + col;
      if constexpr (kOnce == 4) {
        if (col + 4 <= p.n && reinterpret_cast<uintptr_t>(c) % sizeof(float4) == 0) {
          auto* quad = reinterpret_cast<float4*>(c);
          float4 v = make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
          if (p.accumulate) {
            const float4 old = *quad;
            v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
          }
          *quad = v;
          continue;
        }
      }
#pragma unroll
      for (int e = 0; e < kOnce; ++e) {
        if (col + e < p.n) c[e] = p.accumulate ? c[e] + sum[i][j + e] : sum[i][j + e];
      }
    }
  }
}

// The copies of a side of kTile lines to a stage, in two steps.
template <int kTile>
struct Copy {
  static constexpr int kAll = kTile * kStep / 4, kQuads = (kAll + kThreads - 1) / kThreads;
  float4 next[kQuads];

  __device__ void load(const Side& side, int64_t k) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      if (q < kAll) next[i] = load_quad<kTile, kStep>(side, side.step == 1, q, k);
    }
  }
  __device__ void store(const Side& side, Stage<kTile>& to) const {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int q = static_cast<int>(threadIdx.x) + i * kThreads;
      if (q < kAll) store_quad<kTile>(side.step == 1, q, next[i], to);
    }
  }
};

template <int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads, kRows* kColumns < 16 ? 4 : 2)
    matmul_kernel(const __grid_constant__ Products products) {
  __shared__ __align__(16) Stage<kRows * 16> stages_a[2];
  __shared__ __align__(16) Stage<kColumns * 16> stages_b[2];
  Work w;
  if (!find_work<kRows * 16, kColumns * 16>(products, w)) return;
  const MatmulArgs<float>& p = w.p;
  const Side a = side_of(p.a, p.a_row, p.a_col, w.row, p.m, p.inner);
  const Side b = side_of(p.b, p.b_col, p.b_row, w.col, p.n, p.inner);
  const int tx = static_cast<int>(threadIdx.x % 16), ty = static_cast<int>(threadIdx.x / 16);
  Copy<kRows * 16> next_a;
  Copy<kColumns * 16> next_b;
  const auto load = [&](int64_t k) {
    next_a.load(a, k);
    next_b.load(b, k);
  };
  const auto store = [&](int stage) {
    next_a.store(a, stages_a[stage]);
    next_b.store(b, stages_b[stage]);
  };
  float sum[kRows][kColumns] = {};
  load(0);
  store(0);
  __syncthreads();
  int stage = 0;
  for (int64_t k = 0; k < p.inner; k += kStep, stage ^= 1) {
    const bool more = k + kStep < p.inner;
    if (more) load(k + kStep);
    multiply<kRows, kColumns>(stages_a[stage], stages_b[stage], ty, tx, sum);
    if (more) store(stage ^ 1);
    __syncthreads();
  }
  write_tile<kRows, kColumns>(w, ty, tx, sum);
}

// C = or += the sum of a product's pieces, in their order. blockIdx.y is the product, blockIdx.z
// the group.
__global__ void __launch_bounds__(kThreads)
    add_pieces_kernel(const __grid_constant__ Products products) {
  const Product& product = products.list[blockIdx.y];
  const GroupedMatmulArgs<float>& a = product.args;
  if (product.partial < 0 || blockIdx.z >= max(a.groups, int64_t{1})) return;
  int64_t first = 0, pieces = product.pieces;
  float* c = a.all.c;
  if (a.groups > 0) {
    const int64_t group = blockIdx.z;
    for (int64_t g = 0; g < group; ++g) {
      first += tiles(a.offsets[g + 1] - a.offsets[g], product.chunk);
    }
    pieces = tiles(a.offsets[group + 1] - a.offsets[group], product.chunk);
    c += group * a.group_stride;
  }
  const int64_t values = a.all.m * a.all.n;
  const float* from = products.scratch + product.partial + first * values;
  const bool dense = a.all.c_row == a.all.n;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < values;
       i += int64_t{gridDim.x} * kThreads) {
    float& to = c[dense ? i : i / a.all.n * a.all.c_row + i % a.all.n];
    float sum = a.all.accumulate ? to : 0.0f;
#pragma unroll 8
    for (int64_t k = 0; k < pieces; ++k) sum += from[k * values + i];
    to = sum;
  }
}

}  // namespace

void add_pieces(KernelContext& context, const Products& products) {
  int64_t values = 0, groups = 1;
  for (int i = 0; i < products.count; ++i) {
    if (products.list[i].partial < 0) continue;
    const GroupedMatmulArgs<float>& a = products.list[i].args;
    values = std::max(values, a.all.m * a.all.n);
    groups = std::max(groups, a.groups);
  }
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(tiles(values, kThreads), 1024)),
                  static_cast<unsigned>(products.count), static_cast<unsigned>(groups));
  add_pieces_kernel<<<grid, kThreads, 0, stream_of(context)>>>(products);
  check_launch("matmul (pieces)");
}

namespace {

// The tiles of a product.
enum class Size { kLong, kTall, kSmall, kLarge };

Size size_of(const GroupedMatmulArgs<float>& args) {
  constexpr int64_t kFew = 32;
  if (args.all.m <= kFew && args.all.n > kFew) return Size::kLong;
  if (args.all.n <= kFew && args.all.m > kFew) return Size::kTall;
  return args.all.m <= 64 || args.all.n <= 64 ? Size::kSmall : Size::kLarge;
}

void launch_size(KernelContext& context, Size size, Products& products) {
  switch (size) {
    case Size::kLong:
      return launch<16, 128>(context, products, matmul_kernel<1, 8>);
    case Size::kTall:
      return launch<128, 16>(context, products, matmul_kernel<8, 1>);
    case Size::kSmall:
      return launch<64, 64>(context, products, matmul_kernel<4, 4>);
    case Size::kLarge:
      return launch<128, 128>(context, products, matmul_kernel<8, 8>);
  }
}

// Products of a size go into one launch, up to kMost of them.
void run(KernelContext& context, std::span<const GroupedMatmulArgs<float>> args, bool bf16) {
  std::vector<GroupedMatmulArgs<float>> packed, others;
  for (const GroupedMatmulArgs<float>& a : args) {
    if (a.all.m == 0 || a.all.n == 0) continue;
    const bool rounded = bf16 && packs(a);
    if (!rounded && a.all.inner > 0 && (a.all.a == nullptr || a.all.b == nullptr)) {
      throw UsageError("matmul: a product that is not rounded needs its factors in float32");
    }
    (rounded ? packed : others).push_back(a);
  }
  multiply_packed(context, packed);
  for (const Size size : {Size::kLong, Size::kTall, Size::kSmall, Size::kLarge}) {
    Products products;
    for (const GroupedMatmulArgs<float>& a : others) {
      if (size_of(a) != size) continue;
      products.list[products.count++] = {a};
      if (products.count < kMost) continue;
      launch_size(context, size, products);
      products.count = 0;
    }
    if (products.count > 0) launch_size(context, size, products);
  }
}

void run(KernelContext& context, std::span<const MatmulArgs<float>> args, bool bf16) {
  std::vector<GroupedMatmulArgs<float>> list;
  for (const MatmulArgs<float>& p : args) list.push_back({p});
  run(context, list, bf16);
}

}  // namespace
}  // namespace tiled

void matmuls_cuda(KernelContext& context, const std::span<const MatmulArgs<float>>& args) {
  tiled::run(context, args, false);
}

void matmuls_bf16_cuda(KernelContext& context, const std::span<const MatmulArgs<float>>& args) {
  tiled::run(context, args, true);
}

void grouped_matmuls_cuda(KernelContext& context, std::span<const GroupedMatmulArgs<float>> args,
                          bool bf16) {
  tiled::run(context, args, bf16);
}

}  // namespace tamis
