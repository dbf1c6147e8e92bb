// x for linear_native.cuh: rounded to bf16, or quantised to e4m3 by act_quant's formula (see
// quantize_fp8.h) and stored as f16. One warp per row and 128 columns, a float4 a lane; columns
// past the end become 0. Bound by memory: 4 bytes read and 2 written a value.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/linear/linear_products.h"
#include "kernels/linear/products.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 256;

struct Prepare {
  const float* x;
  int64_t x_stride, m, cols;
  uint16_t* out;  // [m, blocks * 128]
  float* scales;  // [m, blocks] or null: bf16
  bool ue8m0, for_tiles;
};

__device__ uint16_t quantised(float x, float scale) {
  const uint8_t code = float_to_e4m3_bits(x / scale);
  return __nv_cvt_fp8_to_halfraw(code, __NV_E4M3).x;
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(const Prepare a, int64_t blocks) {
  const int64_t unit = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (unit >= a.m * blocks) return;
  const int64_t row = unit / blocks, block = unit % blocks;
  const int64_t col = block * kFp8Block + threadIdx.x % 32 * 4;
  const float4 q = row4(a.x + row * a.x_stride, by_fours(a.x, a.x_stride), col, a.cols);
  const float v[4] = {q.x, q.y, q.z, q.w};
  uint16_t out[4];
  if (a.scales == nullptr) {
    for (int k = 0; k < 4; ++k) out[k] = float_to_bf16_bits(v[k]);
  } else {
    float amax = 1e-4f;
    for (int k = 0; k < 4; ++k) amax = fmaxf(amax, fabsf(v[k]));
    for (int offset = 16; offset > 0; offset /= 2) {
      amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, offset));
    }
    float scale = amax * (1.0f / 448.0f);
    if (a.ue8m0) scale = ceil_power_of_two(scale);
    for (int k = 0; k < 4; ++k) out[k] = quantised(v[k], scale);
    if (threadIdx.x % 32 == 0) a.scales[unit] = scale;
  }
  uint16_t* to = a.out + row * blocks * kFp8Block;
  if (!a.for_tiles) {
    reinterpret_cast<ushort4*>(to)[col / 4] = make_ushort4(out[0], out[1], out[2], out[3]);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, half = lane / 16, t = lane / 4 % 4;
  auto* pair = reinterpret_cast<ushort2*>(to + block * kFp8Block + half * 64 + lane % 4 * 16) + t;
  pair[0] = make_ushort2(out[0], out[1]);
  pair[4] = make_ushort2(out[2], out[3]);
}

}  // namespace

void prepare_rows(KernelContext& context, const LinearArgs& a, bool ue8m0, bool for_tiles,
                  uint16_t* out, float* scales) {
  const int64_t blocks = (a.w.cols + kFp8Block - 1) / kFp8Block, units = a.m * blocks;
  if (units == 0) return;
  const auto grid = static_cast<unsigned>((units + kThreads / 32 - 1) / (kThreads / 32));
  prepare_kernel<<<grid, kThreads, 0, stream_of(context)>>>(
      {a.x, a.x_stride, a.m, a.w.cols, out, scales, ue8m0, for_tiles}, blocks);
  check_launch("linear (prepare)");
}

}  // namespace tamis
