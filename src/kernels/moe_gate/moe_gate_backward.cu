// moe_gate_backward on CUDA, for all sequences that lie one after the other in one launch of each
// kernel: how many
// tokens chose each expert (integers, so the order does not matter), then a warp a token for the
// gradient and the token's part of the balance loss, then the sum of those parts by a block, in a
// fixed order. In double as the reference; bound by launches.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/moe_gate/moe_gate_backward_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kWarps = 4;
constexpr int kSlot = 0;    // of device_scratch
constexpr int kMost = 800;  // sequences of a launch

using Args = MoeGateBackwardArgs<float>;

// Sequence i has tokens begin[i] .. begin[i+1] of the arrays of `first`, whose `tokens` are its
// own.
struct Sequences {
  Args first;
  int sequences = 0;
  int32_t* count = nullptr;  // [sequences, experts], 0 before
  double* mean = nullptr;    // [tokens]: a token's part of its sequence's balance loss
  int32_t begin[kMost + 1] = {};
};

__global__ void __launch_bounds__(kRowThreads) count_kernel(const __grid_constant__ Sequences s) {
  const Args& a = s.first;
  const int64_t first = s.begin[blockIdx.y] * a.num_chosen;
  const int64_t last = s.begin[blockIdx.y + 1] * a.num_chosen;
  for (int64_t i = first + int64_t{blockIdx.x} * kRowThreads + threadIdx.x; i < last;
       i += int64_t{gridDim.x} * kRowThreads) {
    atomicAdd(&s.count[blockIdx.y * a.experts + a.ids[i]], 1);
  }
}

__device__ inline double sigmoid(float x) { return 1 / (1 + exp(-static_cast<double>(x))); }

__global__ void __launch_bounds__(kWarps * 32) token_kernel(const __grid_constant__ Sequences s) {
  const Args& a = s.first;
  const int64_t t = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const auto lane = static_cast<int64_t>(threadIdx.x % 32);
  if (t >= s.begin[s.sequences]) return;
  int own = 0, end = s.sequences - 1;  // the last sequence that begins at or before
  while (own < end) {
    const int mid = (own + end + 1) / 2;
    if (s.begin[mid] <= t) {
      own = mid;
    } else {
      end = mid - 1;
    }
  }
  const int64_t tokens = s.begin[own + 1] - s.begin[own];
  const int32_t* count = s.count + own * a.experts;
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
  const double one = static_cast<double>(a.experts) / static_cast<double>(a.num_chosen * tokens);
  double total = 0, loaded = 0;
  for (int64_t e = lane; e < a.experts; e += 32) {
    const double score = sigmoid(logits[e]);
    total += score;
    loaded += count[e] * one * score;
  }
  total = warp_sum(total);
  const double mean = warp_sum(loaded) / total;
  const double scale = a.balance_scale / static_cast<double>(tokens);
  for (int64_t e = lane; e < a.experts; e += 32) {
    const double score = sigmoid(logits[e]);
    double ds = 0;
    for (int64_t i = 0; i < a.num_chosen; ++i) {
      if (ids[i] == e) ds += a.routed_scaling_factor / divisor * (dw[i] - pull / divisor);
    }
    ds += scale * (count[e] * one - mean) / total;
    a.dlogits[t * a.experts + e] = static_cast<float>(ds * score * (1 - score));
  }
  if (lane == 0) s.mean[t] = mean;
}

__global__ void __launch_bounds__(kRowThreads) balance_kernel(const __grid_constant__ Sequences s) {
  const int32_t first = s.begin[blockIdx.x], last = s.begin[blockIdx.x + 1];
  const auto tokens = static_cast<double>(last - first);
  double sum = 0;
  for (int64_t t = first + static_cast<int>(threadIdx.x); t < last; t += kRowThreads) {
    sum += s.mean[t] / tokens;
  }
  sum = block_sum<kRowThreads>(sum);
  if (threadIdx.x == 0) s.first.balance[blockIdx.x] = sum;
}

void run(KernelContext& context, std::span<const Args> args) {
  Sequences s;
  s.first = args[0];
  s.sequences = static_cast<int>(args.size());
  int64_t most = 0, tokens = 0;
  for (size_t i = 0; i < args.size(); ++i) {
    most = std::max(most, args[i].tokens);
    tokens += args[i].tokens;
    s.begin[i + 1] = static_cast<int32_t>(tokens);
  }
  const auto count = static_cast<unsigned>(args.size());
  const int64_t count_bytes =
      (count * s.first.experts * static_cast<int64_t>(sizeof(int32_t)) + 255) / 256 * 256;
  auto* space = static_cast<std::byte*>(
      device_scratch(context, kSlot, count_bytes + tokens * static_cast<int64_t>(sizeof(double))));
  s.count = reinterpret_cast<int32_t*>(space);
  s.mean = reinterpret_cast<double*>(space + count_bytes);
  context.device()->fill(s.count, 0, count_bytes);
  if (most > 0) {
    const dim3 few(static_cast<unsigned>(std::min<int64_t>(8, (most + 127) / 128)), count);
    count_kernel<<<few, kRowThreads, 0, stream_of(context)>>>(s);
    check_launch("moe_gate_backward (count)");
    const auto blocks = static_cast<unsigned>((tokens + kWarps - 1) / kWarps);
    token_kernel<<<blocks, kWarps * 32, 0, stream_of(context)>>>(s);
    check_launch("moe_gate_backward");
  }
  if (s.first.balance == nullptr) return;
  balance_kernel<<<count, kRowThreads, 0, stream_of(context)>>>(s);
  check_launch("moe_gate_backward (balance)");
}

// b's arrays go on where those of a end, `before` tokens after the first ones.
bool follows(const Args& first, int64_t before, int64_t index, const Args& b) {
  const int64_t pairs = before * first.num_chosen, values = before * first.experts;
  const bool same = first.experts == b.experts && first.num_chosen == b.num_chosen &&
                    first.norm_topk_prob == b.norm_topk_prob &&
                    first.routed_scaling_factor == b.routed_scaling_factor &&
                    first.balance_scale == b.balance_scale &&
                    (first.balance == nullptr) == (b.balance == nullptr);
  return same && b.logits == first.logits + values && b.dlogits == first.dlogits + values &&
         b.ids == first.ids + pairs && b.dweights == first.dweights + pairs &&
         (b.balance == nullptr || b.balance == first.balance + index);
}

}  // namespace

void moe_gate_backwards_cuda(KernelContext& context, std::span<const Args> args) {
  while (!args.empty()) {
    size_t count = 1;
    int64_t before = args[0].tokens;
    while (count < args.size() && count < kMost &&
           follows(args[0], before, static_cast<int64_t>(count), args[count])) {
      before += args[count++].tokens;
    }
    run(context, args.first(count));
    args = args.subspan(count);
  }
}

void moe_gate_backward_cuda(KernelContext& context, const Args& args) { run(context, {&args, 1}); }

}  // namespace tamis
