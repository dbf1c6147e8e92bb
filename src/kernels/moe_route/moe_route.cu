// moe_route on CUDA, for few tokens: one block. All make the norm of a token; a warp gates each
// token; then a thread finds the row of each pair by counting the pairs that come before it, and
// all copy rows. What one step leaves to the next lies in shared memory, too. Bound by latency.
#include "kernels/cuda/launch.cuh"
#include "kernels/linear/linear_exact.cuh"
#include "kernels/moe_gate/moe_gate_token.cuh"
#include "kernels/moe_route/moe_route_impl.h"
#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/rms_norm/rms_norm_row.cuh"

namespace tamis {
namespace {

constexpr int kThreads = kRowThreads, kWarps = kThreads / 32;
constexpr int64_t kMostPairs = 64;
constexpr int64_t kSharedBytes = 32 * 1024;
constexpr int64_t kMostNorms = 2;        // the block makes them one after the other
constexpr int64_t kLine = 128;           // bytes
constexpr int64_t kMostWeights = 16384;  // of the router

// part [kStreamRows][kLanes + 1] of each warp; logits: p.y once more, its rows side by side
template <DType T>
__device__ void multiply(const LinearArgs& p, float* part, float* logits) {
  using namespace exact;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  float* own = part + warp * kStreamRows * (kLanes + 1);
  for (int64_t m = 0; m < p.m; ++m) {
    for (int64_t r0 = int64_t{warp} * kStreamRows; r0 < p.w.rows; r0 += kWarps * kStreamRows) {
      float sum[kStreamRows][1] = {};
      stream_lane<T, 1, true>(p, r0, m, lane, sum);
      for (int r = 0; r < kStreamRows; ++r) own[r * (kLanes + 1) + lane] = sum[r][0];
      __syncwarp();
      if (lane < kStreamRows && r0 + lane < p.w.rows) {
        float total = 0;
        for (int l = 0; l < kLanes; ++l) total += own[lane * (kLanes + 1) + l];
        p.y[m * p.y_stride + r0 + lane] = total;
        logits[m * p.w.rows + r0 + lane] = total;
      }
      __syncwarp();
    }
  }
}

// Rows of the pairs, stably sorted by expert, and where each expert's begin.
__device__ void sort_pairs(const MoePermuteArgs& a, int pairs, const int32_t* ids, int32_t* rows) {
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    int row = 0;
    for (int j = 0; j < pairs; ++j) row += ids[j] < ids[i] || (ids[j] == ids[i] && j < i) ? 1 : 0;
    rows[i] = row;
    a.row_of[i] = row;
  }
  for (int e = threadIdx.x; e <= a.experts; e += kThreads) {
    int before = 0;
    for (int j = 0; j < pairs; ++j) before += ids[j] < e ? 1 : 0;
    a.offsets[e] = before;
  }
}

__device__ void copy_rows(const MoePermuteArgs& a, int pairs, const int32_t* rows) {
  const auto both = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.rows);
  if (a.width % 4 == 0 && both % sizeof(float4) == 0) {
    const auto each = static_cast<int>(a.width / 4), chosen = static_cast<int>(a.num_chosen);
    for (int i = threadIdx.x; i < pairs * each; i += kThreads) {
      const int pair = i / each, c = i % each;
      reinterpret_cast<float4*>(a.rows)[int64_t{rows[pair]} * each + c] =
          reinterpret_cast<const float4*>(a.x)[int64_t{pair / chosen} * each + c];
    }
    return;
  }
  for (int64_t i = threadIdx.x; i < pairs * a.width; i += kThreads) {
    const int64_t pair = i / a.width, c = i % a.width;
    a.rows[rows[pair] * a.width + c] = a.x[pair / a.num_chosen * a.width + c];
  }
}

// Floats of dynamic shared memory: the gate's of each token, the logits, the norm of a single
// token.
struct Sizes {
  int64_t gate, logits, norm;
  __host__ __device__ explicit Sizes(const MoeRouteArgs& a)
      : gate(gate::work_floats(a.gate)),
        logits(a.gate.tokens * a.gate.experts),
        norm(a.norm.rows == 1 ? a.norm.width : 0) {}
};

__global__ void __launch_bounds__(kThreads) moe_route_kernel(const MoeRouteArgs a) {
  extern __shared__ __align__(16) float shared[];  // norm, logits, gate
  __shared__ int32_t ids[kMostPairs], rows[kMostPairs];
  __shared__ float part[kWarps * exact::kStreamRows * (exact::kLanes + 1)];
  const Sizes sizes(a);
  float *logits = shared + sizes.norm, *work = logits + sizes.logits;
  const Weight& w = a.router.w;
  for (int64_t i = threadIdx.x * kLine; i < w.rows * w.row_bytes; i += kThreads * kLine) {
    ptx::prefetch_l1(w.data + i);
  }
  if (a.gate.bias != nullptr && threadIdx.x < a.gate.experts) {
    ptx::prefetch_l1(a.gate.bias + threadIdx.x);
  }
  LinearArgs router = a.router;
  if (sizes.norm > 0) {
    rms_norm_row(a.norm, 0, shared);
    router.x = shared;
  } else {
    for (int64_t t = 0; t < a.norm.rows; ++t) rms_norm_row(a.norm, t);
  }
  __syncthreads();
  if (w.dtype == DType::kF32) {
    multiply<DType::kF32>(router, part, logits);
  } else {
    multiply<DType::kBF16>(router, part, logits);
  }
  __syncthreads();
  const int64_t t = threadIdx.x / 32, chosen = a.permute.num_chosen;
  if (t < a.gate.tokens) {
    MoeGateArgs own = a.gate;
    own.logits = logits;
    const int32_t* sorted = gate_token(own, t, work + t * sizes.gate);
    for (int64_t i = threadIdx.x % 32; i < chosen; i += 32) ids[t * chosen + i] = sorted[i];
  }
  __syncthreads();
  const auto pairs = static_cast<int>(a.permute.tokens * chosen);
  sort_pairs(a.permute, pairs, ids, rows);
  if (a.permute.rows == nullptr) return;
  __syncthreads();
  copy_rows(a.permute, pairs, rows);
}

int64_t shared_bytes(const MoeRouteArgs& a) {
  const Sizes s(a);
  return (s.norm + s.logits + a.gate.tokens * s.gate) * static_cast<int64_t>(sizeof(float));
}

}  // namespace

bool moe_route_cuda_supports(const MoeRouteArgs& a) {
  const Weight& w = a.router.w;
  if (w.dtype != DType::kF32 && w.dtype != DType::kBF16) return false;
  return w.rows * w.cols * a.gate.tokens <= kMostWeights && a.gate.tokens > 0 &&
         a.gate.tokens <= kWarps && a.gate.tokens * a.gate.num_chosen <= kMostPairs &&
         shared_bytes(a) <= kSharedBytes;
}

void moe_route_cuda(KernelContext& context, const MoeRouteArgs& args) {
  MoeRouteArgs a = args;
  if (a.norm.rows > kMostNorms) {
    rms_norm_cuda(context, a.norm);
    a.norm.rows = 0;
  }
  moe_route_kernel<<<dim3(1), kThreads, static_cast<size_t>(shared_bytes(a)), stream_of(context)>>>(
      a);
  check_launch("moe_route");
}

}  // namespace tamis
