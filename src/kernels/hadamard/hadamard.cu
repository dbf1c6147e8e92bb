// hadamard on CUDA: log2(width) rounds of butterflies in shared memory, width/2 of them a row, with
// as many rows in a block of 256 threads as it has butterflies for. Bound by memory: each value is
// read and written once. The bits are the reference's: every butterfly is one addition and one
// subtraction of the same two values.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/hadamard/hadamard_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargest = 32768;  // floats of one row that fit in shared memory (128 KiB)

__global__ void __launch_bounds__(kThreads)
    hadamard_kernel(const HadamardArgs a, int64_t block_rows, float scale) {
  extern __shared__ float tile[];
  const int64_t first = blockIdx.x * block_rows;
  const int64_t count = min(block_rows, a.rows - first) * a.width;
  float* x = a.x + first * a.width;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) tile[i] = x[i];
  for (int64_t step = 1; step < a.width; step *= 2) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count / 2; i += kThreads) {
      const int64_t low = i / step * 2 * step + i % step;
      const float u = tile[low], v = tile[low + step];
      tile[low] = u + v;
      tile[low + step] = u - v;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const float y = tile[i] * scale;
    x[i] = a.round_bf16 ? round_bf16(y) : y;
  }
}

}  // namespace

bool hadamard_cuda_supports(const HadamardArgs& a) { return a.width <= kLargest; }

void hadamard_cuda(KernelContext& context, const HadamardArgs& a) {
  if (a.rows == 0) return;
  const int64_t block_rows = std::max<int64_t>(1, 2 * kThreads / a.width);
  const auto blocks = static_cast<unsigned>((a.rows + block_rows - 1) / block_rows);
  const auto bytes = static_cast<int>(block_rows * a.width * static_cast<int64_t>(sizeof(float)));
  if (bytes > 48 * 1024) {
    allow_shared(reinterpret_cast<const void*>(hadamard_kernel), bytes, "hadamard");
  }
  hadamard_kernel<<<blocks, kThreads, static_cast<size_t>(bytes), stream_of(context)>>>(
      a, block_rows, 1.0f / std::sqrt(static_cast<float>(a.width)));
  check_launch("hadamard");
}

}  // namespace tamis
