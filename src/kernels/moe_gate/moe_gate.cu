// moe_gate on CUDA: one warp a token, its scores in shared memory; bound by latency (256 experts,
// 8 choices of 8 scores a lane each).
#include "kernels/cuda/launch.cuh"
#include "kernels/moe_gate/moe_gate_impl.h"
#include "kernels/moe_gate/moe_gate_token.cuh"

namespace tamis {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kSharedBytes = 48 * 1024;

__global__ void __launch_bounds__(kWarps * 32) moe_gate_kernel(const MoeGateArgs a) {
  extern __shared__ float work[];
  const int64_t t = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (t >= a.tokens) return;
  gate_token(a, t, work + threadIdx.x / 32 * gate::work_floats(a));
}

}  // namespace

bool moe_gate_cuda_supports(const MoeGateArgs& a) {
  return gate::work_floats(a) * static_cast<int64_t>(sizeof(float)) <= kSharedBytes;
}

void moe_gate_cuda(KernelContext& context, const MoeGateArgs& a) {
  if (a.tokens == 0) return;
  const int64_t bytes = gate::work_floats(a) * static_cast<int64_t>(sizeof(float));
  const int64_t warps = bytes * kWarps <= kSharedBytes ? kWarps : 1;
  const auto blocks = static_cast<unsigned>((a.tokens + warps - 1) / warps);
  moe_gate_kernel<<<blocks, static_cast<unsigned>(warps * 32), static_cast<size_t>(warps * bytes),
                    stream_of(context)>>>(a);
  check_launch("moe_gate");
}

}  // namespace tamis
