// rms_norm on CUDA. One block of 256 threads a row: thread i adds columns i, i+256, .. in double,
// then the block's fixed tree. Bound by memory: reads x, delta, w once from DRAM (x again from L1),
// writes y and x.
#include <algorithm>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/rms_norm/rms_norm_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;

using Norms = Several<RmsNormArgs>;

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const Norms norms) {
  const RmsNormArgs a = norms.list[blockIdx.y];
  const int64_t row = blockIdx.x;
  if (row >= a.rows) return;
  float* x = a.x + row * a.x_stride;
  float* y = a.y + row * a.y_stride;
  const float* delta = a.delta == nullptr ? nullptr : a.delta + row * a.width;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) {
    const float v = delta == nullptr ? x[i] : x[i] + delta[i];
    sum += static_cast<double>(v) * v;
  }
  const auto mean = static_cast<float>(block_sum<kThreads>(sum) / static_cast<double>(a.width));
  const float scale = 1.0f / sqrtf(mean + a.eps);
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) {
    const float v = delta == nullptr ? x[i] : x[i] + delta[i];
    const float normed = a.w[i] * (v * scale);
    y[i] = a.round_bf16 ? round_bf16(normed) : normed;
    if (delta != nullptr) x[i] = a.round_bf16 ? round_bf16(v) : v;
  }
}

}  // namespace

void rms_norm_cuda(KernelContext& context, const RmsNormArgs& a) {
  rms_norms_cuda(context, {&a, 1});
}

void rms_norms_cuda(KernelContext& context, std::span<const RmsNormArgs> args) {
  in_groups(args, [&](const Norms& norms) {
    int64_t rows = 0;
    for (int i = 0; i < norms.count; ++i) rows = std::max(rows, norms.list[i].rows);
    if (rows == 0) return;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(norms.count));
    rms_norm_kernel<<<grid, kThreads, 0, stream_of(context)>>>(norms);
    check_launch("rms_norm");
  });
}

}  // namespace tamis
