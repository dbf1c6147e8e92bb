// cross_entropy_backward on CUDA: one block of 512 threads a row, thread i over columns i, i+512,
// ..: the maximum, then the exponentials and their sum in double by the block's fixed tree, then
// the gradient in their place. A row of at most kHeld * 512 values stays in registers and is read
// once, by pairs of columns if their number is even; a longer one three times, from L2 after the
// first.
#include "kernels/cross_entropy/cross_entropy_backward_impl.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 512;

constexpr int kHeld = 16;

__device__ inline void write_value(const CrossEntropyBackwardArgs<float>& a, int64_t at, float y) {
  if (a.gradient_bf16 != nullptr) {
    a.gradient_bf16[at] = float_to_bf16_bits(y);
  } else {
    a.logits[at] = y;
  }
}

// A row without a target.
__device__ inline void write_zeros(const CrossEntropyBackwardArgs<float>& a, int64_t row) {
  for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) {
    write_value(a, row * a.vocabulary + v, 0);
  }
  if (threadIdx.x == 0) a.loss[row] = 0;
}

// kMine: values of a row that a thread holds; 0: none.
template <int kMine>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(const CrossEntropyBackwardArgs<float> a) {
  const int64_t row = blockIdx.x;
  float* x = a.logits + row * a.vocabulary;
  const int32_t target = a.targets[row];
  if (target < 0) return write_zeros(a, row);
  const float at_target = x[target];
  float held[kMine > 0 ? kMine : 1];
  // Calls use(value, column) for the thread's columns, in order; what it makes of a value stays.
  const auto each = [&](bool read, const auto& use) {
    if constexpr (kMine > 0) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int64_t v = threadIdx.x + int64_t{i} * kThreads;
        if (v >= a.vocabulary) break;
        if (read) held[i] = x[v];
        use(held[i], v);
      }
    } else {
      for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) use(x[v], v);
    }
  };
  float own = -INFINITY;
  each(true, [&](float& value, int64_t) { own = fmaxf(own, value); });
  const float top = block_max<kThreads>(own);  // and every thread has read the target's value
  double sum = 0;
  each(false, [&](float& value, int64_t) {
    value = expf(value - top);
    sum += value;
  });
  sum = block_sum<kThreads>(sum);
  const auto scale = static_cast<float>(a.scale / sum), whole = static_cast<float>(a.scale);
  each(false, [&](float& value, int64_t v) {
    const float y = value * scale;
    write_value(a, row * a.vocabulary + v, v == target ? y - whole : y);
  });
  if (threadIdx.x == 0) a.loss[row] = log(sum) + static_cast<double>(top) - at_target;
}

// The same for an even number of columns, at most kHeld * kThreads: thread i has the columns 2i and
// 2i+1, and those 2 * 512 further on, ..
__global__ void __launch_bounds__(kThreads)
    cross_entropy_pairs_kernel(const CrossEntropyBackwardArgs<float> a) {
  constexpr int kPairs = kHeld / 2;
  const int64_t row = blockIdx.x;
  const auto pairs = static_cast<int>(a.vocabulary / 2), first = static_cast<int>(threadIdx.x);
  const float* x = a.logits + row * a.vocabulary;
  const int32_t target = a.targets[row];
  if (target < 0) return write_zeros(a, row);
  const float at_target = x[target];
  float2 held[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at = first + i * kThreads;
    held[i] =
        at < pairs ? reinterpret_cast<const float2*>(x)[at] : make_float2(-INFINITY, -INFINITY);
  }
  float own = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) own = fmaxf(own, fmaxf(held[i].x, held[i].y));
  const float top = block_max<kThreads>(own);  // and every thread has read the target's value
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    if (first + i * kThreads >= pairs) break;
    held[i] = make_float2(expf(held[i].x - top), expf(held[i].y - top));
    sum += held[i].x;
    sum += held[i].y;
  }
  sum = block_sum<kThreads>(sum);
  const auto scale = static_cast<float>(a.scale / sum), whole = static_cast<float>(a.scale);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at = first + i * kThreads;
    if (at >= pairs) break;
    const float low = held[i].x * scale, high = held[i].y * scale;
    const float2 y = make_float2(2 * at == target ? low - whole : low,
                                 2 * at + 1 == target ? high - whole : high);
    const int64_t place = row * pairs + at;
    if (a.gradient_bf16 != nullptr) {
      reinterpret_cast<uint32_t*>(a.gradient_bf16)[place] = ptx::pack_bf16(y.x, y.y);
    } else {
      reinterpret_cast<float2*>(a.logits)[place] = y;
    }
  }
  if (threadIdx.x == 0) a.loss[row] = log(sum) + static_cast<double>(top) - at_target;
}

}  // namespace

void cross_entropy_backward_cuda(KernelContext& context, const CrossEntropyBackwardArgs<float>& a) {
  if (a.rows == 0) return;
  const auto all = reinterpret_cast<uintptr_t>(a.logits) |
                   reinterpret_cast<uintptr_t>(a.gradient_bf16) * (sizeof(float) / 2);
  const bool held = a.vocabulary <= kHeld * kThreads;
  const bool pairs = a.vocabulary % 2 == 0 && all % sizeof(float2) == 0;
  const auto kernel = !held   ? cross_entropy_backward_kernel<0>
                      : pairs ? cross_entropy_pairs_kernel
                              : cross_entropy_backward_kernel<kHeld>;
  kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream_of(context)>>>(a);
  check_launch("cross_entropy_backward");
}

}  // namespace tamis
