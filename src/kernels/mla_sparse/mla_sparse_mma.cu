// mla_sparse on the tensor cores: how the work is cut, and the kernel that joins the chunks of a
// list when blocks of their own summed them (mla_sparse_mma.cuh has the rest).
#include <algorithm>
#include <string>

#include "base/error.h"
#include "kernels/cuda/attention_list.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/mla_sparse_mma.h"
#include "tensor/cuda/check.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using mla_mma::kKeys;
using mla_mma::kLatent;
using mla_mma::Softmax;

constexpr int kCombineThreads = kLatent / 4;

// The operations of Fold and fold_kept in mla_sparse_mma.cuh, in the same order.
__device__ float2 fold(const Softmax& left, const Softmax& right, Softmax* out) {
  const float max = ptx::max_nan(left.max, right.max);
  const float2 f{ptx::ex2(left.max - max), ptx::ex2(right.max - max)};
  *out = {max, fmaf(left.sum, f.x, right.sum * f.y)};
  return f;
}

// One block a (token, head). Bound by memory: 2 KiB a chunk.
__global__ void __launch_bounds__(kCombineThreads)
    mla_mma_combine(const MlaSparseArgs a, const mla_mma::Parts parts) {
  const int64_t t = blockIdx.x, h = blockIdx.y;
  const AttentionList list = list_of(a, t);
  static_assert(kMaxChunks == 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t there = __ballot_sync(0xFFFFFFFFu, lane < parts.chunks && list.has_chunk(lane));
  const int chunks = there == 0xFFFFFFFFu ? 32 : __ffs(static_cast<int>(~there)) - 1;
  const int64_t first = t * parts.chunks * a.heads + h;
  const auto* sums = reinterpret_cast<const float4*>(parts.sums) + threadIdx.x;
  Softmax softmax = parts.stats[first];
  float4 sum = sums[first * (kLatent / 4)];
#pragma unroll 4
  for (int c = 1; c < chunks; ++c) {
    const int64_t at = first + c * a.heads;
    const float4 part = sums[at * (kLatent / 4)];
    const float2 f = fold(softmax, parts.stats[at], &softmax);
    sum.x = fmaf(sum.x, f.x, part.x * f.y);
    sum.y = fmaf(sum.y, f.x, part.y * f.y);
    sum.z = fmaf(sum.z, f.x, part.z * f.y);
    sum.w = fmaf(sum.w, f.x, part.w * f.y);
  }
  const float factor = 1.0f / softmax.sum;
  reinterpret_cast<float4*>(a.out)[(t * a.heads + h) * (kLatent / 4) + threadIdx.x] = {
      sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
}

int64_t shared_limit(const DeviceInfo& device) {
  int bytes = 0;
  check_cuda(
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.ordinal),
      "cudaDeviceGetAttribute (shared memory of a block)");
  return bytes;
}

bool is_fp8(const MlaSparseArgs& a) { return a.kv.layout.latent_format == KvFormat::kFP8; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// About how long a plan takes, in steps of a block with 64 heads (3 us on an H200). A step's rows
// are gathered for 16 heads too, so these take nearly half.
double cost(const MlaSparseArgs& a, const MlaMmaPlan& plan, int64_t multiprocessors) {
  const double step = (plan.heads == 16 ? 0.4 : 1.0) * (plan.staged ? 1.0 : 1.5);
  const auto chunks = static_cast<double>(most_chunks(a));
  const double steps = static_cast<double>(ceil_div(longest_list(a), kKeys));
  const int64_t items = a.tokens.num_tokens * ceil_div(a.heads, plan.heads);
  if (!plan.split) {
    const auto waves = static_cast<double>(ceil_div(items, multiprocessors));
    return waves * (steps * step + (chunks - 1) * step + 0.7);
  }
  const auto waves = static_cast<double>(ceil_div(items * most_chunks(a), multiprocessors));
  const double combine = static_cast<double>(a.tokens.num_tokens * a.heads) * chunks * 4096 / 12e6;
  return waves * (steps / chunks * step + 0.7) + 1.5 + combine;
}

}  // namespace

bool mla_sparse_mma_supports(const MlaSparseArgs& a) {
  const KvLayout& l = a.kv.layout;
  return a.round_bf16 && a.mass == nullptr && l.kv_lora == kLatent && l.rope == mla_mma::kRope &&
         l.latent_format != KvFormat::kF32 && a.kv.page_stride % 16 == 0 &&
         reinterpret_cast<uintptr_t>(a.kv.base) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(a.q_latent) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
}

std::vector<MlaMmaPlan> mla_sparse_mma_plans(KernelContext& context, const MlaSparseArgs& a) {
  const int64_t limit = shared_limit(context.device()->info());
  std::vector<MlaMmaPlan> plans;
  for (const int heads : {16, 64}) {
    for (const bool staged : {true, false}) {
      const int64_t bytes = is_fp8(a) ? mla_mma::shared_bytes_fp8(heads, staged)
                                      : mla_mma::shared_bytes_bf16(heads, staged);
      if (bytes > limit) continue;
      plans.push_back({heads, false, staged});
      if (most_chunks(a) > 1) plans.push_back({heads, true, staged});
    }
  }
  return plans;
}

void mla_sparse_mma_run(KernelContext& context, const MlaSparseArgs& a, const MlaMmaPlan& plan) {
  const int64_t n = a.tokens.num_tokens, chunks = most_chunks(a);
  mla_mma::Launch l;
  l.args = a;
  l.heads = plan.heads;
  l.staged = plan.staged;
  l.items = n * ceil_div(a.heads, plan.heads) * (plan.split ? chunks : 1);
  const int64_t most = plan.split ? int64_t{1} << 30 : context.device()->info().multiprocessors;
  l.blocks = static_cast<int>(std::min(l.items, most));
  l.stream = stream_of(context);
  int64_t rows = int64_t{l.blocks} * plan.heads;
  if (plan.split) {
    rows = n * chunks * a.heads;
    l.parts.chunks = static_cast<int>(chunks);
    l.parts.stats = static_cast<Softmax*>(device_scratch(context, 1, rows * 8));
  }
  if (chunks > 1) {
    l.parts.sums = static_cast<float*>(device_scratch(context, 0, rows * kLatent * 4));
  }
  is_fp8(a) ? mla_mma::launch_fp8(l) : mla_mma::launch_bf16(l);
  if (!plan.split) return;
  const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>(a.heads));
  mla_mma_combine<<<grid, kCombineThreads, 0, stream_of(context)>>>(a, l.parts);
  check_launch("mla_mma_combine");
}

void mla_sparse_mma_cuda(KernelContext& context, const MlaSparseArgs& a) {
  if (a.tokens.num_tokens == 0) return;
  if (a.indices == nullptr && a.tokens.max_context < 1) {
    throw UsageError("[mla_sparse] tokens.max_context is not set: the cuda back end needs it");
  }
  const std::vector<MlaMmaPlan> plans = mla_sparse_mma_plans(context, a);
  const int64_t multiprocessors = context.device()->info().multiprocessors;
  const auto best = std::min_element(plans.begin(), plans.end(), [&](const auto& x, const auto& y) {
    return cost(a, x, multiprocessors) < cost(a, y, multiprocessors);
  });
  if (best == plans.end()) {
    throw DeviceError("[mla_sparse] the GPU gives a block too little shared memory (" +
                      std::to_string(shared_limit(context.device()->info())) + " bytes)");
  }
  mla_sparse_mma_run(context, a, *best);
}

}  // namespace tamis
