// What the kernels of matmul on CUDA have in common: many products in one launch, the cuts along
// the inner index, and the copies of tiles to registers.
//
// Products with few tiles and a long inner length (the gradients of weights, whose inner indices
// are the tokens) are cut along it; the pieces' sums go to scratch memory and are added in order by
// a second kernel. Where the cuts are depends on the shapes alone, so equal calls have equal bits.
// The products of groups over inner are cut every kGroupChunk rows of a group.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/matmul/matmul_impl.h"

namespace tamis {
namespace tiled {

constexpr int kThreads = 256;
constexpr int kMost = 48;           // products of a launch
constexpr int kScratchSlot = 1;     // of device_scratch: sums of pieces
constexpr int64_t kFill = 2 * 132;  // blocks that a launch should have
constexpr int64_t kShortest = 512;  // inner indices of a piece at least
constexpr int64_t kGroupChunk = 1024, kCutTo = 64;

// One product, or that of all groups.
struct Product {
  GroupedMatmulArgs<float> args;  // groups 0: args.all alone
  int64_t first = 0;              // its first block
  int64_t pieces = 1;             // along inner; of all groups together, at most
  int64_t chunk = 0;              // inner indices of a piece
  int64_t partial = -1;           // place of the pieces' sums in scratch; -1: none
};

struct Products {
  Product list[kMost];
  int count = 0;
  float* scratch = nullptr;
};

__host__ __device__ inline int64_t tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

// ---- what a block computes

struct Work {
  MatmulArgs<float> p;
  int64_t row, col;  // of its tile
  int product;       // of the list
};

// Finds piece or tile `index` among the groups, each of which has ceil(rows / size) of them. False
// past the last.
__device__ inline bool find_in_groups(const GroupedMatmulArgs<float>& a, int64_t size,
                                      int64_t index, int64_t& group, int64_t& local) {
  for (group = 0; group < a.groups; ++group) {
    const int64_t own = tiles(a.offsets[group + 1] - a.offsets[group], size);
    if (index < own) {
      local = index;
      return true;
    }
    index -= own;
  }
  return false;
}

template <int kM, int kN>
__device__ inline bool find_work(const Products& products, Work& w) {
  int i = 0;
  while (i + 1 < products.count && products.list[i + 1].first <= blockIdx.x) ++i;
  w.product = i;
  const Product& product = products.list[i];
  const GroupedMatmulArgs<float>& a = product.args;
  int64_t index = blockIdx.x - product.first;
  const int64_t across = tiles(a.all.n, kN);
  w.col = index % across * kN;
  index /= across;
  w.p = a.all;
  if (a.groups > 0 && a.over == GroupedOver::kRows) {
    int64_t g = 0, tile = 0;
    if (!find_in_groups(a, kM, index, g, tile)) return false;
    w.p = product_of_group(a, g, a.offsets[g], a.offsets[g + 1]);
    w.row = tile * kM;
    return true;
  }
  const int64_t down = tiles(a.all.m, kM), piece = index / down;
  w.row = index % down * kM;
  if (product.partial < 0) return true;
  int64_t first = 0, last = a.all.inner, local = piece;
  if (a.groups > 0) {
    int64_t g = 0;
    if (!find_in_groups(a, product.chunk, piece, g, local)) return false;
    first = a.offsets[g];
    last = a.offsets[g + 1];
  }
  first += local * product.chunk;
  w.p.a += first * w.p.a_col;
  w.p.b += first * w.p.b_row;
  if (w.p.a_bf16 != nullptr) w.p.a_bf16 += first * w.p.a_col;
  if (w.p.b_bf16 != nullptr) w.p.b_bf16 += first * w.p.b_row;
  w.p.inner = min(product.chunk, last - first);
  w.p.c = products.scratch + product.partial + piece * w.p.m * w.p.n;
  w.p.c_row = w.p.n;
  w.p.accumulate = false;
  return true;
}

// Two neighbours of a row of C, those of them that there are.
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

// ---- the copies to shared memory

// A side of the product: `lines` rows of A or columns of B from the tile's first, `inner` values
// of each.
struct Side {
  const float* data;
  int64_t line, step;  // strides from line to line, and along inner
  int64_t lines, inner;
  bool wide;  // whole quads of neighbours lie on 16 bytes
};

__device__ inline Side side_of(const float* data, int64_t line, int64_t step, int64_t first,
                               int64_t lines, int64_t inner) {
  Side s{data + first * line, line, step, lines - first, inner, false};
  const int64_t other = step == 1 ? line : step;
  s.wide = (step == 1 || line == 1) && other % 4 == 0 &&
           reinterpret_cast<uintptr_t>(s.data) % sizeof(float4) == 0;
  return s;
}

// Quad q of the kTile x kStep values from inner index k on: four along inner (`along`), else four
// lines.
template <int kTile, int kStep>
__device__ inline float4 load_quad(const Side& s, bool along, int q, int64_t k) {
  const int64_t line = along ? q / (kStep / 4) : q % (kTile / 4) * 4;
  const int64_t at = k + (along ? q % (kStep / 4) * 4 : q / (kTile / 4));
  if (line >= s.lines || at >= s.inner) return make_float4(0, 0, 0, 0);
  const float* p = s.data + line * s.line + at * s.step;
  const int64_t left = along ? s.inner - at : s.lines - line;
  if (s.wide && left >= 4) return *reinterpret_cast<const float4*>(p);
  const int64_t stride = along ? s.step : s.line;
  return make_float4(p[0], left > 1 ? p[stride] : 0.0f, left > 2 ? p[2 * stride] : 0.0f,
                     left > 3 ? p[3 * stride] : 0.0f);
}

// ---- launches

// The pieces of a product whose tiles alone would leave most of the device idle.
inline void cut(Product& product, int64_t tile_count) {
  const MatmulArgs<float>& p = product.args.all;
  const bool grouped = product.args.groups > 0;
  if (grouped && product.args.over == GroupedOver::kRows) return;
  if (p.c_bf16 != nullptr || p.add != nullptr) return;  // written by tiles alone
  if (grouped) {
    product.chunk = kGroupChunk;
    product.pieces = tiles(p.inner, kGroupChunk) + product.args.groups;
    product.partial = 0;
    return;
  }
  const int64_t most = std::max<int64_t>(1, p.inner / kShortest);
  const int64_t pieces = std::min(most, kFill / std::max<int64_t>(1, tile_count));
  if (pieces < 2) return;
  product.chunk = tiles(tiles(p.inner, pieces), kCutTo) * kCutTo;
  product.pieces = tiles(p.inner, product.chunk);
  product.partial = 0;
}

// C = or += the sums of the pieces of those products that were cut.
void add_pieces(KernelContext& context, const Products& products);

// Starts kernel<<<..>>>(products), whose blocks compute tiles of kM x kN.
template <int kM, int kN>
void launch(KernelContext& context, Products& products, void (*kernel)(Products),
            int threads = kThreads, int shared = 0) {
  int64_t blocks = 0, scratch = 0;
  for (int i = 0; i < products.count; ++i) {
    Product& product = products.list[i];
    const MatmulArgs<float>& p = product.args.all;
    const bool rows = product.args.groups > 0 && product.args.over == GroupedOver::kRows;
    // Each group may end with part of a tile.
    const int64_t down = tiles(p.m, kM) + (rows ? product.args.groups : 0);
    const int64_t count = down * tiles(p.n, kN);
    cut(product, count);
    product.first = blocks;
    blocks += count * product.pieces;
    if (product.partial < 0) continue;
    product.partial = scratch;
    scratch += product.pieces * p.m * p.n;
  }
  if (scratch > 0) {
    products.scratch = static_cast<float*>(
        device_scratch(context, kScratchSlot, scratch * static_cast<int64_t>(sizeof(float))));
  }
  if (blocks > 0) {
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
             static_cast<size_t>(shared), stream_of(context)>>>(products);
    check_launch("matmul");
  }
  if (scratch > 0) add_pieces(context, products);
}

// Products whose factors are rounded to bf16. a_along: the inner index runs side by side in A, else
// the rows do; b_along likewise. Tiles have 128 or 64 rows and columns.
struct Bf16Kind {
  bool a_along, b_along, wide_m, wide_n;
  bool operator==(const Bf16Kind&) const = default;
};
Bf16Kind bf16_kind(const GroupedMatmulArgs<float>& args);

// Products in matmul_packed.cu, any number. packs(): whether it takes this one: not a narrow one,
// nor one whose factors lie in a way that it cannot read.
bool packs(const GroupedMatmulArgs<float>& args);
void multiply_packed(KernelContext& context, std::span<const GroupedMatmulArgs<float>> args);

}  // namespace tiled
}  // namespace tamis
