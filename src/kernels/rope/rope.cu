// rope on CUDA: one thread a pair, pairs of a head in neighbouring threads. Bound by memory: reads
// and writes 4 * dim bytes a head; cos and sin come from L2. The bits are the reference's.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/rope/rope_impl.h"
#include "kernels/rope/rope_pair.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 128;

using Ropes = Several<RopeArgs>;

__global__ void __launch_bounds__(kThreads) rope_kernel(const Ropes ropes) {
  const RopeArgs a = ropes.list[blockIdx.z];
  const int64_t index = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (index >= a.heads * (a.dim / 2) || blockIdx.x >= a.tokens) return;
  rope_pair(a, blockIdx.x, index);
}

}  // namespace

void rope_cuda(KernelContext& context, const RopeArgs& a) { ropes_cuda(context, {&a, 1}); }

void ropes_cuda(KernelContext& context, std::span<const RopeArgs> args) {
  in_groups(args, [&](const Ropes& ropes) {
    int64_t tokens = 0, pairs = 0;
    for (int i = 0; i < ropes.count; ++i) {
      const RopeArgs& a = ropes.list[i];
      tokens = std::max(tokens, a.tokens);
      pairs = std::max(pairs, a.heads * (a.dim / 2));
    }
    if (tokens == 0 || pairs == 0) return;
    const dim3 grid(static_cast<unsigned>(tokens),
                    static_cast<unsigned>((pairs + kThreads - 1) / kThreads),
                    static_cast<unsigned>(ropes.count));
    rope_kernel<<<grid, kThreads, 0, stream_of(context)>>>(ropes);
    check_launch("rope");
  });
}

}  // namespace tamis
