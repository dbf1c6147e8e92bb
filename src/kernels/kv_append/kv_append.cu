// kv_append on CUDA: one block a token. Bound by launch and latency: about 3 KB a token.
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/kv_append/kv_append_impl.h"
#include "kernels/kv_append/kv_append_row.cuh"

namespace tamis {
namespace {

__global__ void __launch_bounds__(kRowThreads)
    kv_append_kernel(const KvAppendArgs a, const KvRows kv) {
  append_token(a, kv, blockIdx.x);
}

}  // namespace

void kv_append_cuda(KernelContext& context, const KvAppendArgs& a) {
  if (a.tokens.num_tokens == 0) return;
  const auto tokens = static_cast<unsigned>(a.tokens.num_tokens);
  kv_append_kernel<<<tokens, kRowThreads, 0, stream_of(context)>>>(a, kv_rows(a.kv));
  check_launch("kv_append");
}

}  // namespace tamis
