// adamw and the sums of squares on CUDA. A thread a value; bound by memory, 28 bytes a value. The
// operations of a value are those of the reference, in its order. Squares: a block of threads for
// each kSquaresBlock values, in double, then its fixed tree.
#include <algorithm>
#include <cmath>

#include "kernels/adamw/adamw_impl.h"
#include "kernels/cuda/launch.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // a thread goes on with later values
constexpr int kSlot = 0;                  // of device_scratch

__global__ void __launch_bounds__(kThreads) adamw_kernel(const AdamwArgs a, const AdamwFactors f) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.n;
       i += int64_t{gridDim.x} * kThreads) {
    const float g = a.g[i] * f.scale;
    const float m = f.b1 * a.m[i] + f.c1 * g;
    const float v = f.b2 * a.v[i] + f.c2 * (g * g);
    a.m[i] = m;
    a.v[i] = v;
    a.w[i] = a.w[i] * f.keep - f.rate * m / (sqrtf(v) * f.root + f.eps);
  }
}

__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* x, int64_t n, double* part) {
  const int64_t first = int64_t{blockIdx.x} * kSquaresBlock;
  const int64_t last = min(first + kSquaresBlock, n);
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    sum += static_cast<double>(x[i]) * x[i];
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

}  // namespace

void adamw_cuda(KernelContext& context, const AdamwArgs& a) {
  if (a.n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (a.n + kThreads - 1) / kThreads));
  adamw_kernel<<<blocks, kThreads, 0, stream_of(context)>>>(a, adamw_factors(a));
  check_launch("adamw");
}

std::vector<double> squares_by_block_cuda(KernelContext& context, const float* x, int64_t n) {
  const int64_t blocks = (n + kSquaresBlock - 1) / kSquaresBlock;
  std::vector<double> part(static_cast<size_t>(blocks));
  if (blocks == 0) return part;
  const int64_t bytes = blocks * static_cast<int64_t>(sizeof(double));
  auto* sums = static_cast<double*>(device_scratch(context, kSlot, bytes));
  squares_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(context)>>>(x, n, sums);
  check_launch("squares");
  context.device()->download(part.data(), sums, bytes);
  return part;
}

}  // namespace tamis
