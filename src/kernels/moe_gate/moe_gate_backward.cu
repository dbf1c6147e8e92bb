// moe_gate_backward on CUDA, for one sequence or several in one launch of each kernel: how many
// tokens chose each expert (integers, so the order does not matter), then a warp a token for the
// gradient and the token's part of the balance loss, then the sum of those parts by a block, in a
// fixed order. In double as the reference; bound by launches.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/moe_gate/moe_gate_backward_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 4;
constexpr int kSlot = 0;   // of device_scratch
constexpr int kMost = 24;  // sequences of a launch

using Args = MoeGateBackwardArgs<float>;

struct Sequences {
  Args list[kMost];
  int64_t counts = 0;           // of one sequence: its place in `count`
  int32_t* count = nullptr;     // [sequences, experts], 0 before
  double* balance[kMost] = {};  // [tokens] of each
};

__global__ void __launch_bounds__(kRowThreads) count_kernel(const __grid_constant__ Sequences s) {
  const Args& a = s.list[blockIdx.y];
  const int64_t n = a.tokens * a.num_chosen;
  for (int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * kRowThreads) {
    atomicAdd(&s.count[blockIdx.y * s.counts + a.ids[i]], 1);
  }
}

__device__ inline double sigmoid(float x) { return 1 / (1 + exp(-static_cast<double>(x))); }

__global__ void __launch_bounds__(kWarps * 32) token_kernel(const __grid_constant__ Sequences s) {
  const Args& a = s.list[blockIdx.y];
  const int64_t t = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const auto lane = static_cast<int64_t>(threadIdx.x % 32);
  if (t >= a.tokens) return;
  const int32_t* count = s.count + blockIdx.y * s.counts;
  const float* logits = a.logits + t * a.experts;
  const int32_t* ids = a.ids + t * a.num_chosen;
  const float* dw = a.dweights + t * a.num_chosen;
  double chosen = 0, pull = 0;
  for (int64_t i = lane; i < a.num_chosen; i += 32) {
    const double score = sigmoid(logits[ids[i]]);
    chosen += score;
    pull += dw[i] * score;
  }
  chosen = warp_sum(chosen) + 1e-20;
  pull = warp_sum(pull);
  const double divisor = a.norm_topk_prob ? chosen : 1;
  if (!a.norm_topk_prob) pull = 0;
  const double one = static_cast<double>(a.experts) / static_cast<double>(a.num_chosen * a.tokens);
  double total = 0, loaded = 0;
  for (int64_t e = lane; e < a.experts; e += 32) {
    const double score = sigmoid(logits[e]);
    total += score;
    loaded += count[e] * one * score;
  }
  total = warp_sum(total);
  const double mean = warp_sum(loaded) / total;
  const double scale = a.balance_scale / static_cast<double>(a.tokens);
  for (int64_t e = lane; e < a.experts; e += 32) {
    const double score = sigmoid(logits[e]);
    double ds = 0;
    for (int64_t i = 0; i < a.num_chosen; ++i) {
      if (ids[i] == e) ds += a.routed_scaling_factor / divisor * (dw[i] - pull / divisor);
    }
    ds += scale * (count[e] * one - mean) / total;
    a.dlogits[t * a.experts + e] = static_cast<float>(ds * score * (1 - score));
  }
  if (lane == 0) s.balance[blockIdx.y][t] = mean;
}

__global__ void __launch_bounds__(kRowThreads) balance_kernel(const __grid_constant__ Sequences s) {
  const Args& a = s.list[blockIdx.x];
  if (a.balance == nullptr) return;
  const auto tokens = static_cast<double>(a.tokens);
  double sum = 0;
  for (int64_t t = threadIdx.x; t < a.tokens; t += kRowThreads) {
    sum += s.balance[blockIdx.x][t] / tokens;
  }
  sum = block_sum<kRowThreads>(sum);
  if (threadIdx.x == 0) *a.balance = sum;
}

void run(KernelContext& context, std::span<const Args> args) {
  const auto count = static_cast<unsigned>(args.size());
  int64_t most = 0, tokens = 0;
  Sequences s;
  for (const Args& a : args) {
    s.counts = std::max(s.counts, a.experts);
    most = std::max(most, a.tokens);
    tokens += a.tokens;
  }
  const int64_t count_bytes =
      (count * s.counts * static_cast<int64_t>(sizeof(int32_t)) + 255) / 256 * 256;
  auto* space = static_cast<std::byte*>(
      device_scratch(context, kSlot, count_bytes + tokens * static_cast<int64_t>(sizeof(double))));
  s.count = reinterpret_cast<int32_t*>(space);
  auto* balance = reinterpret_cast<double*>(space + count_bytes);
  for (size_t i = 0; i < args.size(); ++i) {
    s.list[i] = args[i];
    s.balance[i] = balance;
    balance += args[i].tokens;
  }
  context.device()->fill(s.count, 0, count_bytes);
  if (most > 0) {
    const dim3 few(static_cast<unsigned>(std::min<int64_t>(8, (most + 127) / 128)), count);
    count_kernel<<<few, kRowThreads, 0, stream_of(context)>>>(s);
    check_launch("moe_gate_backward (count)");
    const dim3 grid(static_cast<unsigned>((most + kWarps - 1) / kWarps), count);
    token_kernel<<<grid, kWarps * 32, 0, stream_of(context)>>>(s);
    check_launch("moe_gate_backward");
  }
  balance_kernel<<<count, kRowThreads, 0, stream_of(context)>>>(s);
  check_launch("moe_gate_backward (balance)");
}

}  // namespace

void moe_gate_backwards_cuda(KernelContext& context, std::span<const Args> args) {
  while (!args.empty()) {
    const size_t count = std::min<size_t>(args.size(), kMost);
    run(context, args.first(count));
    args = args.subspan(count);
  }
}

void moe_gate_backward_cuda(KernelContext& context, const Args& args) { run(context, {&args, 1}); }

}  // namespace tamis
