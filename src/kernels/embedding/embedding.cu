// embedding on CUDA: one block a token, one element a thread and turn. Bound by memory: one row of
// the table is read and one of y written; a lookup is too small for more than coalesced access.
#include "kernels/cuda/launch.cuh"
#include "kernels/embedding/embedding_impl.h"
#include "kernels/embedding/embedding_row.cuh"

namespace tamis {
namespace {

__global__ void __launch_bounds__(kRowThreads) embedding_kernel(const EmbeddingArgs a) {
  embed_token(a, blockIdx.x);
}

}  // namespace

void embedding_cuda(KernelContext& context, const EmbeddingArgs& a) {
  if (a.tokens == 0) return;
  embedding_kernel<<<static_cast<unsigned>(a.tokens), kRowThreads, 0, stream_of(context)>>>(a);
  check_launch("embedding");
}

}  // namespace tamis
