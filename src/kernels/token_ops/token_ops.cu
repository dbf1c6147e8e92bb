// token_ops on CUDA: a block of 256 threads for each token and lane, which runs the lane's steps
// one after the other with a barrier in between.
#include "kernels/token_ops/token_ops_impl.h"
#include "kernels/token_ops/token_steps.cuh"

namespace tamis {
namespace {

using namespace token_steps;  // this file is a body of that header

constexpr int kMost = 10;  // steps of a launch

struct alignas(16) Steps {
  Step list[kMost];
  int count;
};

__global__ void __launch_bounds__(kThreads) token_ops_kernel(const __grid_constant__ Steps given) {
  __shared__ __align__(16) std::byte shared[sizeof(Steps)];
  const Steps& steps = *fetch(given, shared);
  run_lane(steps.list, steps.count, static_cast<int>(blockIdx.y), blockIdx.x, gridDim.x);
}

}  // namespace

void token_ops_cuda(KernelContext& context, int64_t tokens, std::span<const TokenStep> steps) {
  if (tokens == 0) return;
  while (!steps.empty()) {  // what follows in another launch comes later in every lane
    const std::span<const TokenStep> now = steps.first(std::min<size_t>(steps.size(), kMost));
    Steps s;
    s.count = 0;
    int lanes = 0;
    for (const TokenStep& step : now) {
      s.list[s.count++] = on_device(step);
      lanes = std::max(lanes, step.lane + 1);
    }
    join_entries(now, s.list);
    const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(lanes));
    token_ops_kernel<<<grid, kThreads, 0, stream_of(context)>>>(s);
    check_launch("token_ops");
    steps = steps.subspan(now.size());
  }
}

}  // namespace tamis
