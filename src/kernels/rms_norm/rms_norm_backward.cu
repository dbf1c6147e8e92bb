// rms_norm_backward on CUDA: one warp a row, lane l over columns l, l+32, .. in double, then the
// warp's fixed tree. Rows of up to 512 columns: a block has 64 rows, a warp every eighth of
// them, in registers, and adds up its terms of dw on the way; the parts of the blocks are added in
// order (column_sums.cuh). Wider ones are read twice, and once more for dw. Bound by memory: x and
// dy are read, dx read and written.
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/rms_norm/rms_norm_backward_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 8;
constexpr int64_t kHeldWidth = 512;       // columns that a warp holds
constexpr int kBlockRows = 64;            // of a block, where warps hold theirs
constexpr int kRSlot = 0, kPartSlot = 1;  // of device_scratch

// The value at `at` of dx.
__device__ inline void put(const RmsNormBackwardArgs<float>& a, int64_t at, float v) {
  if (a.dx != nullptr) a.dx[at] = v;
  if (a.dx_bf16 != nullptr) a.dx_bf16[at] = float_to_bf16_bits(v);
}

__global__ void __launch_bounds__(kWarps * 32)
    rms_norm_dx_kernel(const RmsNormBackwardArgs<float> a, double* r_of) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t lane = threadIdx.x % 32;
  if (row >= a.rows) return;
  const float* x = a.x + row * a.x_stride;
  const float* dy = a.dy + row * a.width;
  const int64_t to = row * a.dx_stride;
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
    const auto change = static_cast<float>(r * (g - x[i] * pull));
    put(a, to + i, a.overwrite ? change : a.dx[to + i] + change);
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

// dx of the rows of chunk blockIdx.x, and their part of dw, part [chunks, width]. A lane has
// columns l, l+32, .., at most kEach of them.
template <int kEach>
__global__ void __launch_bounds__(kWarps * 32, kEach <= 4   ? 4
                                               : kEach <= 8 ? 3
                                                            : 2)
    rms_norm_backward_kernel(const RmsNormBackwardArgs<float> a, double* part) {
  __shared__ double sums[kWarps][kEach * 32];  // of dw, each lane its own
  const auto warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const auto width = static_cast<int>(a.width);
  const int64_t first = int64_t{blockIdx.x} * kBlockRows;
  const int64_t last = min(first + kBlockRows, a.rows);
  const auto n = static_cast<double>(a.width);
  double* dw = sums[warp] + lane;
#pragma unroll
  for (int i = 0; i < kEach; ++i) dw[i * 32] = 0;
  // w stays in L1.
  const auto w_of = [&](int i) { return i * 32 + lane < width ? a.w[i * 32 + lane] : 0.0f; };
  for (int64_t row = first + warp; row < last; row += kWarps) {
    const float* from_x = a.x + row * a.x_stride;
    const float* from_dy = a.dy + row * a.width;
    const int64_t to = row * a.dx_stride;
    float x[kEach], dy[kEach], dx[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = i * 32 + lane;
      x[i] = c < width ? from_x[c] : 0.0f;
      dy[i] = c < width ? from_dy[c] : 0.0f;
      dx[i] = c < width && !a.overwrite ? a.dx[to + c] : 0.0f;
    }
    double square = 0, gx = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      square += static_cast<double>(x[i]) * x[i];
      gx += static_cast<double>(w_of(i)) * dy[i] * x[i];
    }
    square = warp_sum(square);
    gx = warp_sum(gx);
    const double r = 1 / sqrt(square / n + a.eps);
    const double pull = r * r * gx / n;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = i * 32 + lane;
      const double g = static_cast<double>(w_of(i)) * dy[i];
      const auto change = static_cast<float>(r * (g - x[i] * pull));
      if (c < width) put(a, to + c, a.overwrite ? change : dx[i] + change);
      dw[i * 32] += r * x[i] * dy[i];
    }
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < width; c += kWarps * 32) {
    double sum = sums[0][c];
    for (int i = 1; i < kWarps; ++i) sum += sums[i][c];
    part[blockIdx.x * a.width + c] = sum;
  }
}

}  // namespace

void rms_norm_backward_cuda(KernelContext& context, const RmsNormBackwardArgs<float>& a) {
  if (a.rows == 0 || a.width == 0) return;
  if (a.width <= kHeldWidth) {
    const int64_t chunks = (a.rows + kBlockRows - 1) / kBlockRows;
    auto* part = static_cast<double*>(device_scratch(
        context, kPartSlot, chunks * a.width * static_cast<int64_t>(sizeof(double))));
    const auto kernel = a.width <= 128   ? rms_norm_backward_kernel<4>
                        : a.width <= 256 ? rms_norm_backward_kernel<8>
                                         : rms_norm_backward_kernel<16>;
    kernel<<<static_cast<unsigned>(chunks), kWarps * 32, 0, stream_of(context)>>>(a, part);
    check_launch("rms_norm_backward");
    return add_parts_of_columns(context, part, chunks, a.width, a.dw);
  }
  auto* r_of = static_cast<double*>(
      device_scratch(context, kRSlot, a.rows * static_cast<int64_t>(sizeof(double))));
  rms_norm_dx_kernel<<<static_cast<unsigned>((a.rows + kWarps - 1) / kWarps), kWarps * 32, 0,
                       stream_of(context)>>>(a, r_of);
  check_launch("rms_norm_backward");
  add_column_sums(context, WeightTerm{a, r_of}, a.rows, a.width, kPartSlot, a.dw);
}

}  // namespace tamis
