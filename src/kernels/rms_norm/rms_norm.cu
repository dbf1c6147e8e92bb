// rms_norm on CUDA. One block of 256 threads a row: thread i adds columns i, i+256, .. in double,
// then the block's fixed tree. Bound by memory: reads x, delta, w once from DRAM (x again from L1),
// writes y and x.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/rms_norm/rms_norm_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormArgs a) {
  const int64_t row = blockIdx.x;
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
  if (a.rows == 0) return;
  rms_norm_kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream_of(context)>>>(a);
  check_launch("rms_norm");
}

}  // namespace tamis
