// layer_norm on CUDA. The rows are short (128 in V3.2): one warp a row, lane l adds columns l,
// l+32,
// .. in double, then the warp's fixed tree; mean first, then the squares around it, as the
// reference. Bound by launch and latency: x is read three times, from L1 after the first.
#include "kernels/cuda/launch.cuh"
#include "kernels/layer_norm/layer_norm_impl.h"
#include "kernels/layer_norm/layer_norm_row.cuh"

namespace tamis {
namespace {

constexpr int kWarps = 4;

template <bool kAlone>
__global__ void __launch_bounds__(kWarps * 32) layer_norm_kernel(const LayerNormArgs a) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= a.rows) return;
  layer_norm_row<kAlone>(a, row);
}

}  // namespace

void layer_norm_cuda(KernelContext& context, const LayerNormArgs& a) {
  if (a.rows == 0) return;
  const auto blocks = static_cast<unsigned>((a.rows + kWarps - 1) / kWarps);
  constexpr int64_t kManyRows = 2048;  // other rows hide what w and b take to come
  const auto kernel = a.rows < kManyRows ? layer_norm_kernel<true> : layer_norm_kernel<false>;
  kernel<<<blocks, kWarps * 32, 0, stream_of(context)>>>(a);
  check_launch("layer_norm");
}

}  // namespace tamis
