// kv_gather on CUDA: one block a position. Bound by memory: a row read, 4 bytes a value written.
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/kv_gather/kv_gather_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    kv_gather_kernel(const KvGatherArgs a, const KvRows kv) {
  const int64_t p = blockIdx.x;
  const KvSequence seq = a.tokens.sequences[a.tokens.sequence[0]];
  const std::byte* row = latent_row(kv, seq, static_cast<int>(p));
  const int width = kv.kv_lora + kv.rope;
  for (int d = threadIdx.x; d < width; d += kThreads) {
    const float value = latent_value(kv, row, d);
    a.latent[p * width + d] = value;
    if (d >= kv.kv_lora) a.k_pe[p * kv.rope + d - kv.kv_lora] = value;
  }
}

}  // namespace

void kv_gather_cuda(KernelContext& context, const KvGatherArgs& a) {
  if (a.positions == 0) return;
  const auto positions = static_cast<unsigned>(a.positions);
  kv_gather_kernel<<<positions, kThreads, 0, stream_of(context)>>>(a, kv_rows(a.kv));
  check_launch("kv_gather");
}

}  // namespace tamis
