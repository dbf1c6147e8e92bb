// embedding on CUDA: one block a token, one element a thread and turn. Bound by memory: one row of
// the table is read and one of y written; a lookup is too small for more than coalesced access.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/embedding/embedding_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) embedding_kernel(const EmbeddingArgs a) {
  const int64_t row = a.ids[blockIdx.x] - a.first_id;
  const bool here = row >= 0 && row < a.w.rows;
  float* y = a.y + blockIdx.x * a.w.cols;
  for (int64_t c = threadIdx.x; c < a.w.cols; c += kThreads) {
    y[c] = here ? weight_value(a.w, row, c) : -0.0F;  // x + -0 is x for every x
  }
}

}  // namespace

void embedding_cuda(KernelContext& context, const EmbeddingArgs& a) {
  if (a.tokens == 0) return;
  embedding_kernel<<<static_cast<unsigned>(a.tokens), kThreads, 0, stream_of(context)>>>(a);
  check_launch("embedding");
}

}  // namespace tamis
