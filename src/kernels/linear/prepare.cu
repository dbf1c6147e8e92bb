// x for linear_native.cuh: rounded to bf16, or quantised to e4m3 by act_quant's formula (see
// quantize_fp8.h) and stored as f16, in the layouts of XLayout. One warp per row and 128 columns,
// or for atoms up to 512; a float4 a lane. Columns past the end become 0, and rows of atoms that
// belong to no row of x. Bound by memory: 4 bytes read and 2 written a value.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/linear/linear_products.h"
#include "kernels/linear/products.cuh"
#include "kernels/linear/sm90/config.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 256;

struct Prepare {
  const float* x;
  int64_t x_stride, m, cols;
  PreparedX to;
  bool ue8m0;
  XLayout layout;
  // Of atoms: rows with padding, groups of rows.
  int64_t rows;
  const int64_t* offsets;
  int64_t groups;
};

__device__ uint16_t quantised(float x, float scale, bool as_code) {
  const uint8_t code = float_to_e4m3_bits(x / scale);
  return as_code ? code : __nv_cvt_fp8_to_halfraw(code, __NV_E4M3).x;
}

// Four columns a lane, 128 a warp: bf16, or e4m3 values and their scale in lane 0.
__device__ inline void prepare_values(const Prepare& a, const float4& q, uint16_t (&out)[4],
                                      float* scale_to) {
  const float v[4] = {q.x, q.y, q.z, q.w};
  if (a.to.scales == nullptr) {
    for (int k = 0; k < 4; ++k) out[k] = float_to_bf16_bits(v[k]);
    return;
  }
  float amax = 1e-4f;
  for (int k = 0; k < 4; ++k) amax = fmaxf(amax, fabsf(v[k]));
  for (int offset = 16; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, offset));
  }
  float scale = amax * (1.0f / 448.0f);
  if (a.ue8m0) scale = ceil_power_of_two(scale);
  for (int k = 0; k < 4; ++k) out[k] = quantised(v[k], scale, a.layout == XLayout::kCodes);
  if (threadIdx.x % 32 == 0) *scale_to = scale;
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(const Prepare a, int64_t blocks) {
  const int64_t unit = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (unit >= a.m * blocks) return;
  const int64_t row = unit / blocks, block = unit % blocks;
  const int64_t col = block * kFp8Block + threadIdx.x % 32 * 4;
  const bool codes = a.layout == XLayout::kCodes;
  uint16_t out[4];
  prepare_values(a, row4(a.x + row * a.x_stride, by_fours(a.x, a.x_stride), col, a.cols), out,
                 a.to.scales + (codes ? block * a.m + row : unit));
  if (codes) {
    auto* to = reinterpret_cast<uchar4*>(a.to.x) + row * blocks * (kFp8Block / 4);
    to[col / 4] = make_uchar4(out[0], out[1], out[2], out[3]);
    return;
  }
  uint16_t* to = a.to.x + row * blocks * kFp8Block;
  if (a.layout == XLayout::kRows) {
    reinterpret_cast<ushort4*>(to)[col / 4] = make_ushort4(out[0], out[1], out[2], out[3]);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, half = lane / 16, t = lane / 4 % 4;
  auto* pair = reinterpret_cast<ushort2*>(to + block * kFp8Block + half * 64 + lane % 4 * 16) + t;
  pair[0] = make_ushort2(out[0], out[1]);
  pair[4] = make_ushort2(out[2], out[3]);
}

// The row of x whose place among the rows of atoms is `place`; -1 where there is padding.
__device__ inline int64_t row_at(const Prepare& a, int64_t place) {
  if (a.offsets == nullptr) return place < a.m ? place : -1;
  int64_t low = 0, high = a.groups;  // begin(low) <= place < begin(high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (sm90::first_atom_row(a.offsets[middle], middle) <= place ? low : high) = middle;
  }
  const int64_t first = a.offsets[low];
  const int64_t row = first + place - sm90::first_atom_row(first, low);
  return row >= first && row < a.offsets[low + 1] ? row : -1;
}

constexpr int kAtomBlocks = 4;  // of 128 columns, of a warp

__global__ void __launch_bounds__(kThreads)
    prepare_atoms_kernel(const Prepare a, int64_t blocks, int64_t parts) {
  const int64_t unit = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (unit >= a.rows * parts) return;
  const int64_t place = unit / parts, first = unit % parts * kAtomBlocks, row = row_at(a, place);
  const int lane = static_cast<int>(threadIdx.x) % 32, half = lane / 16, t = lane / 4 % 4;
  const bool fast = by_fours(a.x, a.x_stride);
  float4 q[kAtomBlocks];
#pragma unroll
  for (int i = 0; i < kAtomBlocks; ++i) {
    q[i] = make_float4(0, 0, 0, 0);
    const int64_t col = (first + i) * kFp8Block + lane * 4;
    if (row >= 0) q[i] = row4(a.x + row * a.x_stride, fast && col < a.cols, col, a.cols);
  }
  // Step lane % 4 of its half: chunks 2s and 2s + 1, columns 2t and 2t + 1 in them.
  const int chunk = lane % 4 * 2 ^ static_cast<int>(place % 8);
#pragma unroll
  for (int i = 0; i < kAtomBlocks; ++i) {
    const int64_t block = first + i;
    if (block >= blocks) return;
    uint16_t out[4];
    prepare_values(a, q[i], out, a.to.scales + block * a.rows + place);
    uint16_t* to = a.to.x + ((block * 2 + half) * a.rows + place) * sm90::kColumns + 2 * t;
    *reinterpret_cast<ushort2*>(to + chunk * 8) = make_ushort2(out[0], out[1]);
    *reinterpret_cast<ushort2*>(to + (chunk ^ 1) * 8) = make_ushort2(out[2], out[3]);
  }
}

}  // namespace

void prepare_rows(KernelContext& context, const LinearArgs& a, bool ue8m0, XLayout layout,
                  const PreparedX& to, const int64_t* offsets, int64_t groups) {
  const int64_t blocks = (a.w.cols + kFp8Block - 1) / kFp8Block;
  if (a.m * blocks == 0) return;
  const Prepare p{a.x,     a.x_stride, a.m,    a.w.cols,
                  to,      ue8m0,      layout, sm90::atom_rows(a.m, groups),
                  offsets, groups};
  const auto grid = [](int64_t warps) {
    return static_cast<unsigned>((warps + kThreads / 32 - 1) / (kThreads / 32));
  };
  if (layout == XLayout::kAtoms) {
    const int64_t parts = (blocks + kAtomBlocks - 1) / kAtomBlocks;
    prepare_atoms_kernel<<<grid(p.rows * parts), kThreads, 0, stream_of(context)>>>(p, blocks,
                                                                                    parts);
  } else {
    prepare_kernel<<<grid(a.m * blocks), kThreads, 0, stream_of(context)>>>(p, blocks);
  }
  check_launch("linear (prepare)");
}

}  // namespace tamis
