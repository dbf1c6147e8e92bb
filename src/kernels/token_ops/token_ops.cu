// token_ops on CUDA: a block of 256 threads for each token and lane, which runs the lane's steps
// one after the other with a barrier in between. Bound by latency: each step waits for what it
// reads, from L1 or L2.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/elementwise/elementwise_row.cuh"
#include "kernels/embedding/embedding_row.cuh"
#include "kernels/kv_append/kv_append_row.cuh"
#include "kernels/layer_norm/layer_norm_row.cuh"
#include "kernels/moe_permute/moe_combine_row.cuh"
#include "kernels/rms_norm/rms_norm_row.cuh"
#include "kernels/rope/rope_pair.cuh"
#include "kernels/token_ops/token_ops_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = kRowThreads, kWarps = kThreads / 32;
constexpr int kMost = 10;  // steps of a launch

struct Append {
  KvAppendArgs args;
  KvRows rows;
};

// What stands for an operation's arguments on the device.
template <typename Args>
struct OnDevice {
  using Type = Args;
  static Type of(const Args& a) { return a; }
};
template <>
struct OnDevice<KvAppendArgs> {
  using Type = Append;
  static Type of(const KvAppendArgs& a) { return {a, kv_rows(a.kv)}; }
};

template <typename Variant>
struct Largest;
template <typename... Args>
struct Largest<std::variant<Args...>> {
  static constexpr size_t kBytes = std::max({sizeof(typename OnDevice<Args>::Type)...});
};

struct Step {
  int kind, lane;  // kind: index into TokenOp
  alignas(16) std::byte args[Largest<TokenOp>::kBytes];
};

struct alignas(16) Steps {
  Step list[kMost];
  int count;
};
static_assert(sizeof(Steps) <= 4096, "kernel parameters");

__device__ void run(const EmbeddingArgs& a, int64_t t, int64_t) { embed_token(a, t); }
__device__ void run(const GatherRowsArgs& a, int64_t t, int64_t) {
  const float* x = a.x + a.row[t] * a.width;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) a.y[t * a.width + i] = x[i];
}
__device__ void run(const RmsNormArgs& a, int64_t t, int64_t) { rms_norm_row(a, t); }
__device__ void run(const LayerNormArgs& a, int64_t t, int64_t) {
  if (threadIdx.x < 32) layer_norm_row(a, t);
}
__device__ void run(const RopeArgs& a, int64_t t, int64_t) {
  for (int64_t i = threadIdx.x; i < a.heads * (a.dim / 2); i += kThreads) rope_pair(a, t, i);
}
__device__ void run(const Append& a, int64_t t, int64_t) { append_token(a.args, a.rows, t); }
__device__ void run(const IndexQueryArgs& a, int64_t t, int64_t tokens) {
  const int64_t each = a.rows / tokens;
  for (int64_t i = threadIdx.x / 32; i < each; i += kWarps) index_query_row(a, t * each + i);
}
__device__ void run(const RoundRowsArgs& a, int64_t t, int64_t tokens) {
  const int64_t each = a.rows / tokens;
  for (int64_t i = threadIdx.x; i < each * a.width; i += kThreads) {
    float& x = a.x[(t * each + i / a.width) * a.stride + i % a.width];
    x = round_bf16(x);
  }
}
__device__ void run(const MoeCombineArgs& a, int64_t t, int64_t) {
  const bool wide = combines_by_fours(a);
  for (int64_t c = threadIdx.x * (wide ? 4 : 1); c < a.width; c += kThreads * (wide ? 4 : 1)) {
    wide ? combine_columns<true>(a, t, c) : combine_columns<false>(a, t, c);
  }
}
__device__ void run(const CheckFiniteArgs& a, int64_t t, int64_t) {
  if (t < a.rows) check_row(a, t);
}
__device__ void run(const CheckFlagsArgs& a, int64_t t, int64_t) {
  if (threadIdx.x == 0) check_flag(a, t);
}

template <size_t kKind = 0>
__device__ void run_step(const Step& s, int64_t t, int64_t tokens) {
  if constexpr (kKind < std::variant_size_v<TokenOp>) {
    using Args = typename OnDevice<std::variant_alternative_t<kKind, TokenOp>>::Type;
    if (s.kind == kKind) return run(*reinterpret_cast<const Args*>(s.args), t, tokens);
    run_step<kKind + 1>(s, t, tokens);
  }
}

// Kernel parameters by all threads at once: read where they are used, each line of them would be
// waited for.
__device__ void fetch(const Steps& from, Steps* to) {
  static_assert(sizeof(Steps) % sizeof(uint4) == 0);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(Steps) / sizeof(uint4)); i += kThreads) {
    reinterpret_cast<uint4*>(to)[i] = ptx::load_generic(reinterpret_cast<const uint4*>(&from) + i);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) token_ops_kernel(const __grid_constant__ Steps given) {
  __shared__ __align__(16) Steps steps;
  fetch(given, &steps);
  for (int i = 0; i < steps.count; ++i) {
    const Step& s = steps.list[i];
    if (s.lane != blockIdx.y) continue;
    run_step(s, blockIdx.x, gridDim.x);
    __syncthreads();
  }
}

Step on_device(const TokenStep& step) {
  Step s{static_cast<int>(step.op.index()), step.lane, {}};
  std::visit(
      [&](const auto& a) {
        const auto args = OnDevice<std::decay_t<decltype(a)>>::of(a);
        std::memcpy(s.args, &args, sizeof(args));
      },
      step.op);
  return s;
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
    const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(lanes));
    token_ops_kernel<<<grid, kThreads, 0, stream_of(context)>>>(s);
    check_launch("token_ops");
    steps = steps.subspan(now.size());
  }
}

}  // namespace tamis
