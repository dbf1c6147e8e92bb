// rms_norm on CUDA. One block of 256 threads a row: thread i adds columns i, i+256, .. in double,
// then the block's fixed tree. Many rows of up to 1,024 columns have a warp a row, which keeps it
// in registers and adds in the same order, so the bits are the same. Bound by memory: reads x,
// delta, w once from DRAM (x again from L1), writes y and x.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/rms_norm/rms_norm_row.cuh"

namespace tamis {
namespace {

using Norms = Several<RmsNormArgs>;

constexpr int64_t kManyRows = 2048;   // that keep the device busy a warp each
constexpr int64_t kHeldWidth = 1024;  // columns that a warp holds
constexpr int kWarps = kRowThreads / 32;

__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(const Norms norms) {
  const RmsNormArgs a = norms.list[blockIdx.y];
  const int64_t row = blockIdx.x;
  if (row >= a.rows) return;
  rms_norm_row(a, row);
}

// The sums over the lanes of kN values, each with the bits of warp_sum; lane l gets that of value
// l / (32 / kN). Each step halves the values that a lane has, as it halves the lanes of a value.
template <int kN>
__device__ inline double sums_over_lanes(double (&v)[kN]) {
  const unsigned lane = threadIdx.x % 32;
  unsigned offset = 16;
#pragma unroll
  for (int n = kN; n > 1; n /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const double own = upper ? v[i + n / 2] : v[i], others = upper ? v[i] : v[i + n / 2];
      v[i] = own + __shfl_xor_sync(0xFFFFFFFFu, others, offset);
    }
  }
#pragma unroll
  for (; offset > 0; offset /= 2) v[0] += __shfl_xor_sync(0xFFFFFFFFu, v[0], offset);
  return v[0];
}

// A warp a row: lane l has columns l, l+32, .., at most kEach of them. Sum s of a lane is that of
// thread 32 s + l of a block of rms_norm_kernel.
template <int kEach>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_rows_kernel(const __grid_constant__ Norms norms) {
  constexpr int kSums = kEach < kWarps ? kEach : kWarps;
  const RmsNormArgs& a = norms.list[blockIdx.y];
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const auto lane = static_cast<int>(threadIdx.x % 32), width = static_cast<int>(a.width);
  if (row >= a.rows) return;
  float* x = a.x + row * a.x_stride;
  float v[kEach];
  double sum[kSums] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i) v[i] = i * 32 + lane < width ? x[i * 32 + lane] : 0.0f;
  if (a.delta != nullptr) {
    const float* delta = a.delta + row * a.width;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i * 32 + lane < width) v[i] += delta[i * 32 + lane];
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum[i % kSums] += static_cast<double>(v[i]) * v[i];
  const double mine = sums_over_lanes(sum);
  double total = __shfl_sync(0xFFFFFFFFu, mine, 0);
#pragma unroll
  for (int s = 1; s < kSums; ++s) total += __shfl_sync(0xFFFFFFFFu, mine, s * (32 / kSums));
  const auto mean = static_cast<float>(total / static_cast<double>(a.width));
  const float scale = 1.0f / sqrtf(mean + a.eps);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int c = i * 32 + lane;
    if (c >= width) continue;
    const float y = a.w[c] * (v[i] * scale);
    if (a.y != nullptr) a.y[row * a.y_stride + c] = a.round_bf16 ? round_bf16(y) : y;
    if (a.y_bf16 != nullptr) a.y_bf16[row * a.width + c] = float_to_bf16_bits(y);
    if (a.delta != nullptr) x[c] = a.round_bf16 ? round_bf16(v[i]) : v[i];
  }
}

void launch(KernelContext& context, const Norms& norms, int64_t rows, int64_t width) {
  if (rows < kManyRows || width > kHeldWidth) {
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(norms.count));
    rms_norm_kernel<<<grid, kRowThreads, 0, stream_of(context)>>>(norms);
  } else {
    const auto kernel = width <= 128   ? rms_norm_rows_kernel<4>
                        : width <= 256 ? rms_norm_rows_kernel<8>
                        : width <= 512 ? rms_norm_rows_kernel<16>
                                       : rms_norm_rows_kernel<32>;
    const dim3 grid(static_cast<unsigned>((rows + kWarps - 1) / kWarps),
                    static_cast<unsigned>(norms.count));
    kernel<<<grid, kRowThreads, 0, stream_of(context)>>>(norms);
  }
  check_launch("rms_norm");
}

}  // namespace

void rms_norm_cuda(KernelContext& context, const RmsNormArgs& a) {
  rms_norms_cuda(context, {&a, 1});
}

void rms_norms_cuda(KernelContext& context, std::span<const RmsNormArgs> args) {
  in_groups(args, [&](const Norms& norms) {
    int64_t rows = 0, width = 0;
    for (int i = 0; i < norms.count; ++i) {
      rows = std::max(rows, norms.list[i].rows);
      width = std::max(width, norms.list[i].width);
    }
    if (rows > 0) launch(context, norms, rows, width);
  });
}

}  // namespace tamis
