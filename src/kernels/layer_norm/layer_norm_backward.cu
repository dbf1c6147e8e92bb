// layer_norm_backward on CUDA: one warp a row (they are short), lane l over columns l, l+32, .. in
// double, then the warp's fixed tree; dw and db by column sums over chunks of rows, before dx takes
// the place of dy. Bound by launches and memory.
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/layer_norm/layer_norm_backward_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 8;
constexpr int kMomentSlot = 0, kPartSlot = 1;  // of device_scratch

using Args = LayerNormBackwardArgs<float>;

// moments [rows]: the mean and r.
__global__ void __launch_bounds__(kWarps * 32)
    layer_norm_moments_kernel(const Args a, double2* moments) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t lane = threadIdx.x % 32;
  if (row >= a.rows) return;
  const float* x = a.x + row * a.width;
  const auto n = static_cast<double>(a.width);
  double sum = 0, square = 0;
  for (int64_t i = lane; i < a.width; i += 32) sum += x[i];
  const double mean = warp_sum(sum) / n;
  for (int64_t i = lane; i < a.width; i += 32) square += (x[i] - mean) * (x[i] - mean);
  square = warp_sum(square);
  if (lane == 0) moments[row] = make_double2(mean, 1 / sqrt(square / n + a.eps));
}

__global__ void __launch_bounds__(kWarps * 32)
    layer_norm_dx_kernel(const Args a, const double2* moments) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t lane = threadIdx.x % 32;
  if (row >= a.rows) return;
  const float* x = a.x + row * a.width;
  const float* dy = a.dy + row * a.width;
  const double2 m = moments[row];
  const auto n = static_cast<double>(a.width);
  double g_sum = 0, gz_sum = 0;
  for (int64_t i = lane; i < a.width; i += 32) {
    const double z = (x[i] - m.x) * m.y, g = static_cast<double>(a.w[i]) * dy[i];
    g_sum += g;
    gz_sum += g * z;
  }
  const double g_mean = warp_sum(g_sum) / n, gz_mean = warp_sum(gz_sum) / n;
  for (int64_t i = lane; i < a.width; i += 32) {
    const double z = (x[i] - m.x) * m.y, g = static_cast<double>(a.w[i]) * dy[i];
    a.dx[row * a.width + i] = static_cast<float>(m.y * (g - g_mean - z * gz_mean));
  }
}

struct WeightTerm {
  Args a;
  const double2* moments;
  __device__ double operator()(int64_t row, int64_t i) const {
    const double2 m = moments[row];
    return a.dy[row * a.width + i] * ((a.x[row * a.width + i] - m.x) * m.y);
  }
};

struct BiasTerm {
  Args a;
  __device__ double operator()(int64_t row, int64_t i) const { return a.dy[row * a.width + i]; }
};

}  // namespace

void layer_norm_backward_cuda(KernelContext& context, const Args& a) {
  if (a.rows == 0 || a.width == 0) return;
  auto* moments = static_cast<double2*>(
      device_scratch(context, kMomentSlot, a.rows * static_cast<int64_t>(sizeof(double2))));
  const auto blocks = static_cast<unsigned>((a.rows + kWarps - 1) / kWarps);
  layer_norm_moments_kernel<<<blocks, kWarps * 32, 0, stream_of(context)>>>(a, moments);
  check_launch("layer_norm_backward (moments)");
  add_column_sums(context, WeightTerm{a, moments}, a.rows, a.width, kPartSlot, a.dw);
  add_column_sums(context, BiasTerm{a}, a.rows, a.width, kPartSlot, a.db);
  layer_norm_dx_kernel<<<blocks, kWarps * 32, 0, stream_of(context)>>>(a, moments);
  check_launch("layer_norm_backward");
}

}  // namespace tamis
