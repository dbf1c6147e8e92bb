// rms_norm on CUDA. One block of 256 threads a row: thread i adds columns i, i+256, .. in double,
// then the block's fixed tree. Bound by memory: reads x, delta, w once from DRAM (x again from L1),
// writes y and x.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/rms_norm/rms_norm_row.cuh"

namespace tamis {
namespace {

using Norms = Several<RmsNormArgs>;

__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(const Norms norms) {
  const RmsNormArgs a = norms.list[blockIdx.y];
  const int64_t row = blockIdx.x;
  if (row >= a.rows) return;
  rms_norm_row(a, row);
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
    rms_norm_kernel<<<grid, kRowThreads, 0, stream_of(context)>>>(norms);
    check_launch("rms_norm");
  });
}

}  // namespace tamis
