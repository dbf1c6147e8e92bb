// rms_norm_backward on CUDA: one warp a row for r and dx, lane l over columns l, l+32, .. in
// double, then the warp's fixed tree; dw by column sums over chunks of rows. Bound by memory: x
// and dy are read twice, dx read and written.
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/rms_norm/rms_norm_backward_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 8;
constexpr int kRSlot = 0, kPartSlot = 1;  // of device_scratch

__global__ void __launch_bounds__(kWarps * 32)
    rms_norm_dx_kernel(const RmsNormBackwardArgs<float> a, double* r_of) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t lane = threadIdx.x % 32;
  if (row >= a.rows) return;
  const float* x = a.x + row * a.x_stride;
  const float* dy = a.dy + row * a.width;
  float* dx = a.dx + row * a.dx_stride;
  const auto n = static_cast<double>(a.width);
  double square = 0, gx = 0;
  for (int64_t i = lane; i < a.width; i += 32) {
    square += static_cast<double>(x[i]) * x[i];
    gx += static_cast<double>(a.w[i]) * dy[i] * x[i];
  }
  square = warp_sum(square);
  gx = warp_sum(gx);
  const double r = 1 / sqrt(square / n + a.eps);
  const double pull = r * r * gx / n;
  for (int64_t i = lane; i < a.width; i += 32) {
    const double g = static_cast<double>(a.w[i]) * dy[i];
    dx[i] += static_cast<float>(r * (g - x[i] * pull));
  }
  if (lane == 0) r_of[row] = r;
}

struct WeightTerm {
  RmsNormBackwardArgs<float> a;
  const double* r_of;
  __device__ double operator()(int64_t row, int64_t i) const {
    return r_of[row] * a.x[row * a.x_stride + i] * a.dy[row * a.width + i];
  }
};

}  // namespace

void rms_norm_backward_cuda(KernelContext& context, const RmsNormBackwardArgs<float>& a) {
  if (a.rows == 0 || a.width == 0) return;
  auto* r_of = static_cast<double*>(
      device_scratch(context, kRSlot, a.rows * static_cast<int64_t>(sizeof(double))));
  rms_norm_dx_kernel<<<static_cast<unsigned>((a.rows + kWarps - 1) / kWarps), kWarps * 32, 0,
                       stream_of(context)>>>(a, r_of);
  check_launch("rms_norm_backward");
  add_column_sums(context, WeightTerm{a, r_of}, a.rows, a.width, kPartSlot, a.dw);
}

}  // namespace tamis
