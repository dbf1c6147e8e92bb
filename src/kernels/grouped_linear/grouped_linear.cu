// grouped_linear on CUDA, exact precision: one warp an output, lane l sums columns l, l+32, .. by
// fma, then the warp's fixed tree. Finds its row's group by bisection of the offsets.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/grouped_linear/grouped_linear_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 8;

struct Product {
  const float* x;
  int64_t x_stride;
  const Weight* weights;
  int64_t outputs;
  float* y;
  int64_t y_stride;
};

// The group of `row`, or -1.
__device__ int64_t group_of(const int64_t* offsets, int64_t groups, int64_t row) {
  if (row < offsets[0] || row >= offsets[groups]) return -1;
  int64_t low = 0, high = groups;  // offsets[low] <= row < offsets[high]
  while (high - low > 1) {
    const int64_t mid = (low + high) / 2;
    (offsets[mid] <= row ? low : high) = mid;
  }
  return low;
}

__global__ void grouped_kernel(const Product p, const int64_t* offsets, int64_t groups) {
  const int64_t row = blockIdx.y;
  const int64_t out = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t g = group_of(offsets, groups, row);
  if (g < 0 || out >= p.outputs) return;
  const Weight& w = p.weights[g];
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; c < w.cols; c += 32) {
    sum = fmaf(weight_value(w, out, c), p.x[row * p.x_stride + c], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) p.y[row * p.y_stride + out] = sum;
}

}  // namespace

void grouped_linear_cuda(KernelContext& context, const GroupedLinearArgs& a) {
  for (const GroupedProduct& p : a.products) {
    if (a.rows == 0) break;
    const int64_t outputs = p.weights[0].rows;
    const dim3 grid(static_cast<unsigned>((outputs + kWarps - 1) / kWarps),
                    static_cast<unsigned>(a.rows));
    grouped_kernel<<<grid, kWarps * 32, 0, stream_of(context)>>>(
        {p.x, p.x_stride, p.device_weights, outputs, p.y, p.y_stride}, a.offsets, a.groups);
    check_launch("grouped_linear");
  }
  projections(context, a.beside, a.native, a.ue8m0);
}

}  // namespace tamis
