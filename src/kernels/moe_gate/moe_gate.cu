// moe_gate on CUDA: one warp a token, its scores in shared memory; bound by latency (256 experts,
// 8 choices of 8 scores a lane each and five shuffles).
//
// Every choice is the largest of a total order, so the order in which lanes compare does not
// matter: NaN below -inf, equal values by the lower id, NaNs by the higher (what the reference's
// loop leaves when all are NaN). Exponentials are taken in double and rounded once, because the
// reference's are correctly rounded in all but a few cases of a thousand, and a different last bit
// can choose a different expert.
#include "kernels/cuda/launch.cuh"
#include "kernels/moe_gate/moe_gate_impl.h"

namespace tamis {
namespace {

constexpr int kWarps = 4;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int64_t kSharedBytes = 48 * 1024;

struct Choice {
  float value;
  int32_t id;
};

__device__ bool better(const Choice& a, const Choice& b) {
  if (isnan(a.value) || isnan(b.value)) {
    return isnan(a.value) && isnan(b.value) ? a.id > b.id : isnan(b.value);
  }
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The index of the largest of b[0..n), n > 0, in every lane.
__device__ int32_t warp_argmax(const float* b, int32_t n, int32_t lane) {
  Choice best{__int_as_float(0x7FC00000), -1};
  for (int32_t i = lane; i < n; i += 32) {
    const Choice c{b[i], i};
    if (better(c, best)) best = c;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const Choice other{__shfl_xor_sync(kAll, best.value, offset),
                       __shfl_xor_sync(kAll, best.id, offset)};
    if (better(other, best)) best = other;
  }
  return best.id;
}

__device__ float rounded_exp(float x) { return static_cast<float>(exp(static_cast<double>(x))); }

__device__ void scores_of(const MoeGateArgs& a, const float* logits, float* s, int32_t lane) {
  const auto n = static_cast<int32_t>(a.experts);
  if (!a.softmax) {
    for (int32_t e = lane; e < n; e += 32) s[e] = 1.0f / (1.0f + rounded_exp(-logits[e]));
    return;
  }
  float top = -INFINITY;
  for (int32_t e = lane; e < n; e += 32) top = fmaxf(top, logits[e]);
  for (int offset = 16; offset > 0; offset /= 2) {
    top = fmaxf(top, __shfl_xor_sync(kAll, top, offset));
  }
  double sum = 0;
  for (int32_t e = lane; e < n; e += 32) {
    s[e] = rounded_exp(logits[e] - top);
    sum += s[e];
  }
  sum = warp_sum(sum);
  for (int32_t e = lane; e < n; e += 32) s[e] = static_cast<float>(s[e] / sum);
}

// The two largest of b[0..n) by one warp; NaNs count for nothing.
__device__ float two_largest(const float* b, int32_t n, int32_t lane) {
  float first = -INFINITY, second = -INFINITY;
  for (int32_t i = lane; i < n; i += 32) {
    const float v = isnan(b[i]) ? -INFINITY : b[i];
    second = fmaxf(second, fminf(first, v));
    first = fmaxf(first, v);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const float f = __shfl_xor_sync(kAll, first, offset);
    const float s = __shfl_xor_sync(kAll, second, offset);
    second = fmaxf(fmaxf(second, s), fminf(first, f));
    first = fmaxf(first, f);
  }
  return n == 1 ? first : first + second;
}

// Sets b to -inf outside the topk_group best groups. group [2 * groups].
__device__ void keep_groups(const MoeGateArgs& a, float* b, float* group, int32_t lane) {
  const auto groups = static_cast<int32_t>(a.groups);
  const auto size = static_cast<int32_t>(a.experts / a.groups);
  float* kept = group + groups;
  for (int32_t g = 0; g < groups; ++g) {
    const float sum = two_largest(b + g * size, size, lane);
    if (lane == 0) {
      group[g] = sum;
      kept[g] = 0;
    }
  }
  __syncwarp();
  for (int64_t i = 0; i < a.topk_group; ++i) {
    const int32_t g = warp_argmax(group, groups, lane);
    __syncwarp();
    if (lane == 0) {
      kept[g] = 1;
      group[g] = -INFINITY;
    }
    __syncwarp();
  }
  for (int32_t e = lane; e < groups * size; e += 32) {
    if (kept[e / size] == 0) b[e] = -INFINITY;
  }
  __syncwarp();
}

// Sorts the chosen ids by counting the smaller ones and writes them with their weights.
__device__ void write_choice(const MoeGateArgs& a, int64_t t, const int32_t* chosen, const float* s,
                             int32_t lane) {
  const auto k = static_cast<int32_t>(a.num_chosen);
  int32_t* ids = a.ids + t * k;
  for (int32_t i = lane; i < k; i += 32) {
    int32_t rank = 0;
    for (int32_t j = 0; j < k; ++j) {
      rank += chosen[j] < chosen[i] || (chosen[j] == chosen[i] && j < i) ? 1 : 0;
    }
    ids[rank] = chosen[i];
  }
  __syncwarp();
  double sum = 0;
  for (int32_t i = 0; i < k; ++i) sum += s[ids[i]];
  const float scale = a.norm_topk_prob ? static_cast<float>(1.0 / (sum + 1e-20)) : 1.0f;
  for (int32_t i = lane; i < k; i += 32) {
    a.weights[t * k + i] = s[ids[i]] * scale * a.routed_scaling_factor;
  }
}

// Floats of shared memory for one token: s, b, groups and whether they are kept, the chosen ids.
__host__ __device__ int64_t work_floats(const MoeGateArgs& a) {
  return 2 * a.experts + 2 * a.groups + a.num_chosen;
}

__global__ void __launch_bounds__(kWarps * 32) moe_gate_kernel(const MoeGateArgs a) {
  extern __shared__ float work[];
  const int64_t t = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (t >= a.tokens) return;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const auto n = static_cast<int32_t>(a.experts);
  float* s = work + threadIdx.x / 32 * work_floats(a);
  float *b = s + n, *group = b + n;
  auto* chosen = reinterpret_cast<int32_t*>(group + 2 * a.groups);
  scores_of(a, a.logits + t * n, s, lane);
  __syncwarp();
  for (int32_t e = lane; e < n; e += 32) b[e] = s[e] + (a.bias != nullptr ? a.bias[e] : 0.0f);
  __syncwarp();
  if (a.groups > 1) keep_groups(a, b, group, lane);
  for (int64_t i = 0; i < a.num_chosen; ++i) {
    const int32_t id = warp_argmax(b, n, lane);
    __syncwarp();
    if (lane == 0) {
      chosen[i] = id;
      b[id] = __int_as_float(0x7FC00000);  // taken
    }
    __syncwarp();
  }
  write_choice(a, t, chosen, s, lane);
}

}  // namespace

bool moe_gate_cuda_supports(const MoeGateArgs& a) {
  return work_floats(a) * static_cast<int64_t>(sizeof(float)) <= kSharedBytes;
}

void moe_gate_cuda(KernelContext& context, const MoeGateArgs& a) {
  if (a.tokens == 0) return;
  const int64_t bytes = work_floats(a) * static_cast<int64_t>(sizeof(float));
  const int64_t warps = bytes * kWarps <= kSharedBytes ? kWarps : 1;
  const auto blocks = static_cast<unsigned>((a.tokens + warps - 1) / warps);
  moe_gate_kernel<<<blocks, static_cast<unsigned>(warps * 32), static_cast<size_t>(warps * bytes),
                    stream_of(context)>>>(a);
  check_launch("moe_gate");
}

}  // namespace tamis
