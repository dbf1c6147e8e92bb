// What every .cu file of an operation starts with.
//
// The contract: x.cu defines `void x_cuda(KernelContext&, const XArgs&)`, declared in x_impl.h and
// first in x.cpp's list as {"cuda", supports, x_cuda}. Every pointer in XArgs is a device pointer,
// those inside KvLayer, TokenMap and KvSequence too (a TokenMap's `sequences` is an array on the
// device whose `pages` are device pointers). The work is put on the context's stream and not waited
// for; nothing is copied to or from the host, so that a whole step can become a CUDA graph.
// kernels/cuda/no_cuda.cpp has each x_cuda for builds without CUDA.
//
// The compiler fuses nothing (-fmad=false): write fmaf where a fused operation is meant. A row's
// sum runs in an order that depends on its width alone, never on the rows beside it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tamis {

cudaStream_t stream_of(KernelContext& context);

// Device memory for the time of one operation; DeviceContext::scratch has the rules. Slots 0 to 7
// belong to operations, 8 to 15 to the model.
void* device_scratch(KernelContext& context, int slot, int64_t bytes);

// After each launch: DeviceError naming the kernel if it could not be started.
void check_launch(const char* kernel);

// Arguments of an operation that several calls of it share one launch with.
template <typename Args>
struct Several {
  static constexpr int kMost = 4;
  Args list[kMost];
  int count = 0;
};

// Calls run(Several<Args>) for the arguments, up to kMost at a time.
template <typename Args, typename Run>
void in_groups(std::span<const Args> args, const Run& run) {
  Several<Args> group;
  for (const Args& a : args) {
    group.list[group.count++] = a;
    if (group.count < Several<Args>::kMost) continue;
    run(group);
    group.count = 0;
  }
  if (group.count > 0) run(group);
}

// Lets `kernel` use `bytes` of dynamic shared memory (beyond 48 KiB it must be asked for).
void allow_shared(const void* kernel, int bytes, const char* name);

// Bytes of shared memory that a block of the current device can have: 99 KiB at least from sm_80
// on, 227 KiB on Hopper.
int most_shared();

// Threads of a block that works on the values of one token.
constexpr int kRowThreads = 256;

// Sum over the warp's lanes, the same in every lane, in a fixed order.
template <typename T>
__device__ inline T warp_sum(T x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
  return x;
}

// Sum over a block of kThreads threads, the same in every thread, in a fixed order.
template <int kThreads, typename T>
__device__ inline T block_sum(T x) {
  static_assert(kThreads % 32 == 0);
  __shared__ T part[kThreads / 32];
  x = warp_sum(x);
  __syncthreads();  // the last call's reads are done
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = part[0];
  for (int w = 1; w < kThreads / 32; ++w) sum += part[w];
  return sum;
}

// Maximum over a block of kThreads threads, the same in every thread; NaN is passed over. Once in a
// kernel: a second call would write while the first is read.
template <int kThreads>
__device__ inline float block_max(float x) {
  static_assert(kThreads % 32 == 0);
  __shared__ float part[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
  }
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  float top = part[0];
  for (int w = 1; w < kThreads / 32; ++w) top = fmaxf(top, part[w]);
  return top;
}

}  // namespace tamis
