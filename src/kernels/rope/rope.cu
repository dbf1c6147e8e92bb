// rope on CUDA: one thread a pair, pairs of a head in neighbouring threads, those of the next token
// after them. Bound by memory: reads and writes 4 * dim bytes a head; cos and sin come from L2. The
// bits are the reference's.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/rope/rope_impl.h"
#include "kernels/rope/rope_pair.cuh"

namespace tamis {
namespace {

constexpr int kThreads = 128;

using Ropes = Several<RopeArgs>;

__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ Ropes ropes) {
  const RopeArgs& a = ropes.list[blockIdx.y];
  const int64_t each = a.heads * (a.dim / 2);
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= a.tokens * each) return;
  const bool is_short = index <= UINT32_MAX;  // divided faster
  const int64_t t =
      is_short ? static_cast<uint32_t>(index) / static_cast<uint32_t>(each) : index / each;
  rope_pair(a, t, index - t * each);
}

}  // namespace

void rope_cuda(KernelContext& context, const RopeArgs& a) { ropes_cuda(context, {&a, 1}); }

void ropes_cuda(KernelContext& context, std::span<const RopeArgs> args) {
  in_groups(args, [&](const Ropes& ropes) {
    int64_t pairs = 0;
    for (int i = 0; i < ropes.count; ++i) {
      const RopeArgs& a = ropes.list[i];
      pairs = std::max(pairs, a.tokens * a.heads * (a.dim / 2));
    }
    if (pairs == 0) return;
    const dim3 grid(static_cast<unsigned>((pairs + kThreads - 1) / kThreads),
                    static_cast<unsigned>(ropes.count));
    rope_kernel<<<grid, kThreads, 0, stream_of(context)>>>(ropes);
    check_launch("rope");
  });
}

}  // namespace tamis
