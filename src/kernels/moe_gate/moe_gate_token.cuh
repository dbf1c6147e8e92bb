// One token of moe_gate by one warp, for its kernel and that of moe_route.
//
// Every choice is the largest of a total order, so the order in which lanes compare does not
// matter: NaN below -inf, equal values by the lower id, NaNs by the higher (what the reference's
// loop leaves when all are NaN). Exponentials are taken in double and rounded once, because the
// reference's are correctly rounded in all but a few cases of a thousand, and a different last bit
// can choose a different expert.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/moe_gate/moe_gate.h"

namespace tamis {
namespace gate {

constexpr unsigned kAll = 0xFFFFFFFFu;
// The index of the largest of b[0..n), n > 0, in every lane.
__device__ inline int32_t warp_argmax(const float* b, int32_t n, int32_t lane) {
  uint32_t best = 0;
  int32_t id = -1;
  for (int32_t i = lane; i < n; i += 32) {
    const uint32_t key = key_of(b[i]);
    if (key > best || key == 0) id = best == 0 || key != 0 ? i : id;
    best = max(best, key);
  }
  const uint32_t top = __reduce_max_sync(kAll, best);
  if (top == 0) return __reduce_max_sync(kAll, id);
  return __reduce_min_sync(kAll, best == top ? id : n);
}

__device__ inline float rounded_exp(float x) {
  return static_cast<float>(exp(static_cast<double>(x)));
}

__device__ inline void scores_of(const MoeGateArgs& a, const float* logits, float* s,
                                 int32_t lane) {
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

// The sum of the two largest of b[0..n); NaNs count for nothing.
__device__ inline float two_largest(const float* b, int32_t n) {
  float first = -INFINITY, second = -INFINITY;
#pragma unroll 4
  for (int32_t i = 0; i < n; ++i) {
    const float v = isnan(b[i]) ? -INFINITY : b[i];
    second = fmaxf(second, fminf(first, v));
    first = fmaxf(first, v);
  }
  return n == 1 ? first : first + second;
}

// Sets b to -inf outside the topk_group best groups. group [2 * groups].
__device__ inline void keep_groups(const MoeGateArgs& a, float* b, float* group, int32_t lane) {
  const auto groups = static_cast<int32_t>(a.groups);
  const auto size = static_cast<int32_t>(a.experts / a.groups);
  float* kept = group + groups;
  for (int32_t g = lane; g < groups; g += 32) {
    group[g] = two_largest(b + g * size, size);
    kept[g] = 0;
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
__device__ inline void write_choice(const MoeGateArgs& a, int64_t t, const int32_t* chosen,
                                    int32_t* sorted, const float* s, int32_t lane) {
  const auto k = static_cast<int32_t>(a.num_chosen);
  for (int32_t i = lane; i < k; i += 32) {
    int32_t rank = 0;
    for (int32_t j = 0; j < k; ++j) {
      rank += chosen[j] < chosen[i] || (chosen[j] == chosen[i] && j < i) ? 1 : 0;
    }
    sorted[rank] = chosen[i];
  }
  __syncwarp();
  double sum = 0;
  for (int32_t i = 0; i < k; ++i) sum += s[sorted[i]];
  const float scale = a.norm_topk_prob ? static_cast<float>(1.0 / (sum + 1e-20)) : 1.0f;
  for (int32_t i = lane; i < k; i += 32) {
    a.ids[t * k + i] = sorted[i];
    a.weights[t * k + i] = s[sorted[i]] * scale * a.routed_scaling_factor;
  }
}

// Whether (a, i) comes before (b, j): the larger value, of equal ones the lower id.
__device__ inline bool before(float a, int32_t i, float b, int32_t j) {
  return a > b || (a == b && i < j);
}

// gate_token where a lane has an expert: at most 32 of them, sigmoid scores, groups of equal size.
// Nothing but shuffles, and every choice is a rank found by counting. Returns false, having chosen
// nothing, where a biased score is not finite: which ids are taken then, the loops say.
__device__ inline bool gate_in_lanes(const MoeGateArgs& a, int64_t t, int32_t* sorted,
                                     int32_t lane) {
  const auto n = static_cast<int32_t>(a.experts), groups = static_cast<int32_t>(a.groups);
  const auto k = static_cast<int32_t>(a.num_chosen), size = n / groups;
  const bool here = lane < n;
  const float s = here ? 1.0f / (1.0f + rounded_exp(-a.logits[t * n + lane])) : 0;
  float b = here ? s + (a.bias != nullptr ? a.bias[lane] : 0.0f) : 0;
  if (__ballot_sync(kAll, !isfinite(b)) != 0) return false;
  if (groups > 1) {
    const int32_t first = lane / size * size;  // of the lane's group
    float top = -INFINITY, second = -INFINITY;
    for (int32_t i = 0; i < size; ++i) {
      const float v = __shfl_sync(kAll, b, (first + i) % 32);
      second = fmaxf(second, fminf(top, v));
      top = fmaxf(top, v);
    }
    const float score = size == 1 ? top : top + second;
    if (__ballot_sync(kAll, here && !isfinite(score)) != 0) return false;
    int32_t rank = 0;
    for (int32_t g = 0; g < groups; ++g) {
      rank += before(__shfl_sync(kAll, score, g * size), g, score, lane / size) ? 1 : 0;
    }
    if (rank >= static_cast<int32_t>(a.topk_group)) b = -INFINITY;
  }
  int32_t rank = 0;
  for (int32_t e = 0; e < n; ++e) {
    rank += before(__shfl_sync(kAll, b, e), e, b, lane) ? 1 : 0;
  }
  const bool chosen = here && rank < k;
  const uint32_t ids = __ballot_sync(kAll, chosen);
  double sum = 0;
  for (uint32_t left = ids; left != 0; left &= left - 1) {
    sum += __shfl_sync(kAll, s, __ffs(static_cast<int>(left)) - 1);
  }
  const float scale = a.norm_topk_prob ? static_cast<float>(1.0 / (sum + 1e-20)) : 1.0f;
  if (chosen) {
    const int32_t at = __popc(ids & ((1u << lane) - 1));
    sorted[at] = lane;
    a.ids[t * k + at] = lane;
    a.weights[t * k + at] = s * scale * a.routed_scaling_factor;
  }
  __syncwarp();
  return true;
}

// Floats of shared memory for one token: s, b, groups and whether they are kept, the chosen ids as
// they come and sorted.
__host__ __device__ inline int64_t work_floats(const MoeGateArgs& a) {
  return 2 * a.experts + 2 * a.groups + 2 * a.num_chosen;
}

}  // namespace gate

// work [work_floats(a)], in shared memory, of this warp alone. Returns the chosen ids in order,
// within it.
__device__ inline const int32_t* gate_token(const MoeGateArgs& a, int64_t t, float* work) {
  using namespace gate;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const auto n = static_cast<int32_t>(a.experts);
  float* s = work;
  float *b = s + n, *group = b + n;
  auto* chosen = reinterpret_cast<int32_t*>(group + 2 * a.groups);
  int32_t* sorted = chosen + a.num_chosen;
  const bool in_lanes =
      n <= 32 && !a.softmax && a.num_chosen <= n && n % static_cast<int32_t>(a.groups) == 0;
  if (in_lanes && gate_in_lanes(a, t, sorted, lane)) return sorted;
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
  write_choice(a, t, chosen, sorted, s, lane);
  __syncwarp();
  return sorted;
}

}  // namespace tamis
