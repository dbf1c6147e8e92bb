// cross_entropy_backward on CUDA: one block of 512 threads a row, thread i over columns i, i+512,
// ..: the maximum, then the exponentials and their sum in double by the block's fixed tree, then
// the gradient in their place. A row of at most kHeld * 512 values stays in registers and is read
// once; a longer one three times, from L2 after the first.
#include "kernels/cross_entropy/cross_entropy_backward_impl.h"
#include "kernels/cuda/launch.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 512;

constexpr int kHeld = 16;

// kMine: values of a row that a thread holds; 0: none.
template <int kMine>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(const CrossEntropyBackwardArgs<float> a) {
  const int64_t row = blockIdx.x;
  float* x = a.logits + row * a.vocabulary;
  const int32_t target = a.targets[row];
  if (target < 0) {
    for (int64_t v = threadIdx.x; v < a.vocabulary; v += kThreads) x[v] = 0;
    if (threadIdx.x == 0) a.loss[row] = 0;
    return;
  }
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
    x[v] = v == target ? y - whole : y;
  });
  if (threadIdx.x == 0) a.loss[row] = log(sum) + static_cast<double>(top) - at_target;
}

}  // namespace

void cross_entropy_backward_cuda(KernelContext& context, const CrossEntropyBackwardArgs<float>& a) {
  if (a.rows == 0) return;
  const auto kernel = a.vocabulary <= kHeld * kThreads ? cross_entropy_backward_kernel<kHeld>
                                                       : cross_entropy_backward_kernel<0>;
  kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream_of(context)>>>(a);
  check_launch("cross_entropy_backward");
}

}  // namespace tamis
