// matmul with Highway. A task is a tile of C, at most 96 x 256. For each chunk of 256 inner indices
// it packs A as panels of 6 rows and B as panels of 16 columns (96 and 256 KiB: L2), then runs a
// register tile of 6 x 16: 12 accumulators, 2 registers of B and a broadcast of A fill the 16
// registers of AVX2, 8 loads for 12 fma. The strides are used up in the packing, so a transposed
// side costs a slower copy of m * inner values and nothing in the m * n * inner products.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/matmul/matmul_impl.h"
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matmul/matmul_simd.cpp"
#include <hwy/foreach_target.h>
//
#include "kernels/simd/lanes-inl.h"

#ifndef TAMIS_MATMUL_SIMD_ONCE_
#define TAMIS_MATMUL_SIMD_ONCE_
namespace tamis {
namespace {

constexpr int64_t kRows = 6, kCols = 16;            // a register tile
constexpr int64_t kTileRows = 96, kTileCols = 256;  // a task
constexpr int64_t kInner = 256;                     // a chunk
static_assert(kTileRows % kRows == 0 && kTileCols % kCols == 0);

struct MatmulTile {
  const MatmulArgs<float>* args;
  int64_t row, rows, col, cols;
  float *a, *b;  // room for the packed chunks
};

}  // namespace
}  // namespace tamis
#endif  // TAMIS_MATMUL_SIMD_ONCE_

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_matmul_tile(const MatmulTile&) { throw_no_vectors(); }
#else

// `lines` lines of `length` values as [lines / kWidth][length][kWidth]; absent lines are 0.
template <int64_t kWidth>
void pack(const float* from, int64_t line_stride, int64_t value_stride, int64_t lines,
          int64_t length, float* to) {
  for (int64_t first = 0; first < lines; first += kWidth, to += length * kWidth) {
    const int64_t count = std::min(kWidth, lines - first);
    const float* source = from + first * line_stride;
    if (count < kWidth) std::fill_n(to, length * kWidth, 0.0f);
    if (line_stride == 1) {
      for (int64_t l = 0; l < length; ++l) {
        std::memcpy(to + l * kWidth, source + l * value_stride,
                    static_cast<size_t>(count) * sizeof(float));
      }
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* line = source + i * line_stride;
      for (int64_t l = 0; l < length; ++l) to[l * kWidth + i] = line[l * value_stride];
    }
  }
}

// C[rows, cols] = or += A B for one register tile of packed panels.
HWY_INLINE void register_tile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                              int64_t inner, bool add, int64_t rows, int64_t cols, float* c,
                              int64_t c_row) {
  F8 acc[kRows][2];
  TAMIS_UNROLL for (int64_t i = 0; i < kRows; ++i) acc[i][0] = acc[i][1] = zero8();
  for (int64_t l = 0; l < inner; ++l, a += kRows, b += kCols) {
    const F8 b0 = load8(b), b1 = load8(b + kLanes);
    TAMIS_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      const F8 x = set8(a[i]);
      acc[i][0] = fma8(x, b0, acc[i][0]);
      acc[i][1] = fma8(x, b1, acc[i][1]);
    }
  }
  HWY_ALIGN float out[kRows * kCols];
  TAMIS_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    store8(acc[i][0], out + i * kCols);
    store8(acc[i][1], out + i * kCols + kLanes);
  }
  for (int64_t i = 0; i < rows; ++i) {
    float* to = c + i * c_row;
    const float* from = out + i * kCols;
    if (add) {
      for (int64_t j = 0; j < cols; ++j) to[j] += from[j];
    } else {
      std::memcpy(to, from, static_cast<size_t>(cols) * sizeof(float));
    }
  }
}

void run_matmul_tile(const MatmulTile& t) {
  const MatmulArgs<float>& p = *t.args;
  for (int64_t l = 0; l < p.inner; l += kInner) {
    const int64_t inner = std::min(kInner, p.inner - l);
    pack<kRows>(p.a + t.row * p.a_row + l * p.a_col, p.a_row, p.a_col, t.rows, inner, t.a);
    pack<kCols>(p.b + l * p.b_row + t.col * p.b_col, p.b_col, p.b_row, t.cols, inner, t.b);
    for (int64_t j = 0; j < t.cols; j += kCols) {
      for (int64_t i = 0; i < t.rows; i += kRows) {
        register_tile(t.a + i * inner, t.b + j * inner, inner, p.accumulate || l > 0,
                      std::min(kRows, t.rows - i), std::min(kCols, t.cols - j),
                      p.c + (t.row + i) * p.c_row + t.col + j, p.c_row);
      }
    }
  }
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(run_matmul_tile);

int64_t tiles(int64_t total, int64_t tile) { return (total + tile - 1) / tile; }

// No product to sum over: C is 0, or stays.
void clear(const MatmulArgs<float>& p) {
  if (p.inner > 0 || p.accumulate) return;
  for (int64_t i = 0; i < p.m; ++i) std::fill_n(p.c + i * p.c_row, p.n, 0.0f);
}

}  // namespace

void matmuls_simd(KernelContext& context, const std::span<const MatmulArgs<float>>& args) {
  std::vector<int64_t> first = {0};
  for (const MatmulArgs<float>& p : args) {
    clear(p);
    first.push_back(first.back() + tiles(p.m, kTileRows) * tiles(p.n, kTileCols));
  }
  context.pool().run(first.back(), [&](int64_t task, int thread) {
    const auto product = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
    const MatmulArgs<float>& p = args[static_cast<size_t>(product)];
    const int64_t local = task - first[static_cast<size_t>(product)];
    const int64_t row = local % tiles(p.m, kTileRows) * kTileRows;
    const int64_t col = local / tiles(p.m, kTileRows) * kTileCols;
    const MatmulTile tile = {&p,
                             row,
                             std::min(kTileRows, p.m - row),
                             col,
                             std::min(kTileCols, p.n - col),
                             context.scratch(thread, 0, kTileRows * kInner),
                             context.scratch(thread, 1, kTileCols * kInner)};
    HWY_DYNAMIC_DISPATCH(run_matmul_tile)(tile);
  });
}

}  // namespace tamis
#endif  // HWY_ONCE
