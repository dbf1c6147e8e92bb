// step_in and step_out on CUDA. Both are bound by latency: one read of the host's memory over PCIe
// for step_in (the length and the first bytes at once), one read of the logits from L2 for
// step_out.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/step_io/step_io_impl.h"
#include "tensor/cuda/check.h"

namespace tamis {
namespace {

constexpr int kInThreads = 256, kOutThreads = 1024, kOutWarps = kOutThreads / 32;
constexpr int64_t kHeader = sizeof(uint4);

__global__ void __launch_bounds__(kInThreads) step_in_kernel(const StepInArgs a) {
  const int64_t first = int64_t{blockIdx.x} * kInThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kInThreads;
  const auto* from = reinterpret_cast<const uint4*>(a.host + kHeader);
  const int64_t room = a.room / kHeader - 1;
  uint4 value = first < room ? __ldcv(from + first) : uint4{};
  const uint4 header = __ldcv(reinterpret_cast<const uint4*>(a.host));
  const int64_t bytes = static_cast<int64_t>(header.x) | static_cast<int64_t>(header.y) << 32;
  const int64_t count = bytes / static_cast<int64_t>(sizeof(uint4));
  for (int64_t i = first; i < count; i += step) {
    if (i != first) value = __ldcv(from + i);
    reinterpret_cast<uint4*>(a.to)[i] = value;
  }
  for (int64_t i = first; i <= a.sequences; i += step) a.marks[i] = i < a.sequences ? -1 : 0;
  if (first == 0) a.marks[a.sequences + 1] = static_cast<int32_t>(header.z);
}

struct Best {
  float value;
  int32_t id;
  __device__ bool below(const Best& b) const {
    return b.value > value || (b.value == value && b.id < id);
  }
};

__device__ Best best_of_warp(Best mine) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(0xFFFFFFFFu, mine.value, offset),
                     __shfl_xor_sync(0xFFFFFFFFu, mine.id, offset)};
    if (mine.below(other)) mine = other;
  }
  return mine;
}

__device__ void take(float v, int64_t id, Best* best, bool* bad) {
  *bad |= !isfinite(v);
  const Best other{v, static_cast<int32_t>(id)};
  if (best->below(other)) *best = other;
}

// One row by the block; true in thread 0 if it is not all finite.
__device__ bool row_out(const StepOutArgs& a, int64_t row) {
  __shared__ Best part[kOutWarps];
  const float* x = a.logits + row * a.vocab;
  Best best{-INFINITY, INT32_MAX};
  bool bad = false;
  if (a.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(a.logits) % sizeof(float4) == 0) {
#pragma unroll 2
    for (int64_t i = threadIdx.x; i < a.vocab / 4; i += kOutThreads) {
      const float4 v = reinterpret_cast<const float4*>(x)[i];
      take(v.x, 4 * i, &best, &bad);
      take(v.y, 4 * i + 1, &best, &bad);
      take(v.z, 4 * i + 2, &best, &bad);
      take(v.w, 4 * i + 3, &best, &bad);
    }
  } else {
    for (int64_t i = threadIdx.x; i < a.vocab; i += kOutThreads) take(x[i], i, &best, &bad);
  }
  best = best_of_warp(best);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = best;
  bad = __syncthreads_or(bad) != 0;
  if (threadIdx.x < 32) best = best_of_warp(part[threadIdx.x]);
  if (threadIdx.x == 0) a.host_best[row] = best.id;
  return bad;
}

__global__ void __launch_bounds__(kOutThreads) step_out_kernel(const StepOutArgs a) {
  __shared__ bool last;
  const int64_t row = blockIdx.x;
  if (row < a.rows && row_out(a, row) && threadIdx.x == 0) {
    atomicCAS(&a.failed[a.sequence[a.token[row]]], -1, a.mark);
  }
  if (threadIdx.x == 0) {
    __threadfence_system();  // the mark and the token can be read before the block is counted
    last = gridDim.x == 1 || atomicAdd(a.arrivals, 1u) + 1 == gridDim.x;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int64_t i = threadIdx.x; i < a.sequences; i += kOutThreads) {
    a.host_failed[i] = __ldcg(a.failed + i);
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(a.host_done) = __ldcg(a.arrivals + 1);
}

}  // namespace

void step_in_cuda(KernelContext& context, const StepInArgs& a) {
  constexpr int64_t kBlock = kInThreads * kHeader;
  const auto blocks = std::min<int64_t>((a.room + kBlock - 1) / kBlock, 64);
  step_in_kernel<<<static_cast<unsigned>(blocks), kInThreads, 0, stream_of(context)>>>(a);
  check_launch("step_in");
}

void step_out_cuda(KernelContext& context, const StepOutArgs& a) {
  const auto blocks = static_cast<unsigned>(std::max<int64_t>(a.rows, 1));
  step_out_kernel<<<blocks, kOutThreads, 0, stream_of(context)>>>(a);
  check_launch("step_out");
}

bool step_idle_cuda(KernelContext& context) {
  const cudaError_t code = cudaStreamQuery(stream_of(context));
  if (code == cudaErrorNotReady) return false;
  check_cuda(code, "cudaStreamQuery");
  return true;
}

}  // namespace tamis
