// array_ops on CUDA: one thread a value, neighbouring columns in neighbouring threads; bound by
// memory. add_experts has a warp a row, largest_columns a block.
#include <algorithm>

#include "kernels/array_ops/array_ops_impl.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/cuda/ptx.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // a thread goes on with later values

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(std::min(kMostBlocks, (n + kThreads - 1) / kThreads));
}

__device__ int64_t first_index() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
__device__ int64_t index_step() { return int64_t{gridDim.x} * kThreads; }

__global__ void __launch_bounds__(kThreads) add_values_kernel(const float* x, int64_t n, float* y) {
  for (int64_t i = first_index(); i < n; i += index_step()) y[i] += x[i];
}

// Four values a thread, on 16 bytes.
__global__ void __launch_bounds__(kThreads)
    add_quads_kernel(const float4* x, int64_t quads, float4* y) {
  const int64_t i = first_index();
  if (i >= quads) return;
  const float4 a = x[i], b = y[i];
  y[i] = make_float4(b.x + a.x, b.y + a.y, b.z + a.z, b.w + a.w);
}

__global__ void __launch_bounds__(kThreads) scale_values_kernel(float* x, int64_t n, float factor) {
  for (int64_t i = first_index(); i < n; i += index_step()) x[i] *= factor;
}

// Eight values a thread where `wide`, on 16 bytes.
__global__ void __launch_bounds__(kThreads)
    round_values_kernel(const float* x, int64_t n, bool wide, uint16_t* y) {
  const int64_t i = first_index() * 8;
  if (wide && i + 8 <= n) {
    const float4 low = *reinterpret_cast<const float4*>(x + i);
    const float4 high = *reinterpret_cast<const float4*>(x + i + 4);
    *reinterpret_cast<uint4*>(y + i) =
        make_uint4(ptx::pack_bf16(low.x, low.y), ptx::pack_bf16(low.z, low.w),
                   ptx::pack_bf16(high.x, high.y), ptx::pack_bf16(high.z, high.w));
    return;
  }
  for (int64_t j = i; j < min(i + 8, n); ++j) y[j] = float_to_bf16_bits(x[j]);
}

__global__ void __launch_bounds__(kThreads) copy_columns_kernel(const CopyColumnsArgs<float> a) {
  for (int64_t i = first_index(); i < a.rows * a.width; i += index_step()) {
    const int64_t r = i / a.width, c = i % a.width;
    a.to[r * a.to_stride + c] = a.from[r * a.from_stride + c];
  }
}

__global__ void __launch_bounds__(kThreads) pick_rows_kernel(const PickRowsArgs<float> a) {
  for (int64_t i = first_index(); i < a.rows * a.width; i += index_step()) {
    a.y[i] = a.x[a.row[i / a.width] * a.width + i % a.width];
  }
}

__global__ void __launch_bounds__(kThreads) return_rows_kernel(const ReturnRowsArgs<float> a) {
  for (int64_t i = first_index(); i < a.rows * a.width; i += index_step()) {
    a.x[a.row[i / a.width] * a.width + i % a.width] += a.y[i];
  }
}

// A warp a token. kWide: four columns of a lane at a time.
template <bool kWide>
__global__ void __launch_bounds__(kThreads) add_experts_kernel(const AddExpertsArgs<float> a) {
  constexpr int kEach = kWide ? 4 : 1;
  const int64_t t = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (t >= a.tokens) return;
  const int32_t* row_of = a.row_of + t * a.num_chosen;
  const float* weights = a.weights + t * a.num_chosen;
  float* y = a.y + t * a.width;
  const auto chosen = static_cast<int>(a.num_chosen);
  for (int64_t c = threadIdx.x % 32 * kEach; c < a.width; c += 32 * kEach) {
    if constexpr (kWide) {
      float4 sum = *reinterpret_cast<const float4*>(y + c);
#pragma unroll 4
      for (int i = 0; i < chosen; ++i) {
        const float4 x = *reinterpret_cast<const float4*>(a.rows + row_of[i] * a.width + c);
        const float w = weights[i];
        sum = make_float4(sum.x + w * x.x, sum.y + w * x.y, sum.z + w * x.z, sum.w + w * x.w);
      }
      *reinterpret_cast<float4*>(y + c) = sum;
    } else {
      float sum = y[c];
      for (int i = 0; i < chosen; ++i) sum += weights[i] * a.rows[row_of[i] * a.width + c];
      y[c] = sum;
    }
  }
}

// The larger value wins, of equal ones the lower column: the order of the comparisons does not
// matter. NaN is below everything (order.cuh); a row whose first value is NaN keeps it, as the
// loop of the reference does.
__global__ void __launch_bounds__(kThreads)
    largest_columns_kernel(const LargestColumnsArgs<float> a) {
  const float* x = a.x + int64_t{blockIdx.x} * a.width;
  uint64_t best = 0;
  for (int64_t c = threadIdx.x; c < a.width; c += kThreads) {
    const uint64_t key = uint64_t{key_of(x[c])} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(c));
    best = max(best, key);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    best = max(best, __shfl_xor_sync(0xFFFFFFFFu, best, offset));
  }
  __shared__ uint64_t part[kThreads / 32];
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (const uint64_t other : part) best = max(best, other);
  const auto column = static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(best));
  a.best[blockIdx.x] = isnan(x[0]) ? 0 : column;
}

}  // namespace

void add_values_cuda(KernelContext& context, const float* x, int64_t n, float* y) {
  if (n == 0) return;
  if (n % 4 == 0 && (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0) {
    const int64_t quads = n / 4;
    add_quads_kernel<<<static_cast<unsigned>((quads + kThreads - 1) / kThreads), kThreads, 0,
                       stream_of(context)>>>(reinterpret_cast<const float4*>(x), quads,
                                             reinterpret_cast<float4*>(y));
    return check_launch("add_values");
  }
  add_values_kernel<<<blocks_for(n), kThreads, 0, stream_of(context)>>>(x, n, y);
  check_launch("add_values");
}

void scale_values_cuda(KernelContext& context, float* x, int64_t n, float factor) {
  if (n == 0) return;
  scale_values_kernel<<<blocks_for(n), kThreads, 0, stream_of(context)>>>(x, n, factor);
  check_launch("scale_values");
}

void round_values_cuda(KernelContext& context, const float* x, int64_t n, uint16_t* y) {
  if (n == 0) return;
  const bool wide =
      (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % sizeof(uint4) == 0;
  const auto blocks = static_cast<unsigned>((n + kThreads * 8 - 1) / (kThreads * 8));
  round_values_kernel<<<blocks, kThreads, 0, stream_of(context)>>>(x, n, wide, y);
  check_launch("round_values");
}

void copy_columns_cuda(KernelContext& context, const CopyColumnsArgs<float>& a) {
  if (a.rows * a.width == 0) return;
  copy_columns_kernel<<<blocks_for(a.rows * a.width), kThreads, 0, stream_of(context)>>>(a);
  check_launch("copy_columns");
}

void pick_rows_cuda(KernelContext& context, const PickRowsArgs<float>& a) {
  if (a.rows * a.width == 0) return;
  pick_rows_kernel<<<blocks_for(a.rows * a.width), kThreads, 0, stream_of(context)>>>(a);
  check_launch("pick_rows");
}

void return_rows_cuda(KernelContext& context, const ReturnRowsArgs<float>& a) {
  if (a.rows * a.width == 0) return;
  return_rows_kernel<<<blocks_for(a.rows * a.width), kThreads, 0, stream_of(context)>>>(a);
  check_launch("return_rows");
}

void add_experts_cuda(KernelContext& context, const AddExpertsArgs<float>& a) {
  if (a.tokens * a.width == 0) return;
  const auto all = reinterpret_cast<uintptr_t>(a.rows) | reinterpret_cast<uintptr_t>(a.y);
  const auto kernel =
      a.width % 4 == 0 && all % 16 == 0 ? add_experts_kernel<true> : add_experts_kernel<false>;
  constexpr int64_t kTokens = kThreads / 32;
  kernel<<<static_cast<unsigned>((a.tokens + kTokens - 1) / kTokens), kThreads, 0,
           stream_of(context)>>>(a);
  check_launch("add_experts");
}

void largest_columns_cuda(KernelContext& context, const LargestColumnsArgs<float>& a) {
  if (a.rows == 0) return;
  largest_columns_kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream_of(context)>>>(a);
  check_launch("largest_columns");
}

}  // namespace tamis
