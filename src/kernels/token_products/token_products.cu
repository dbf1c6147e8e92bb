// token_products on CUDA, for one token: a block of 256 threads makes the norm in shared memory and
// multiplies it with 32 rows of a weight, four a warp, in the order of linear_exact.cuh. The rows
// are on their way to L1 meanwhile. Blocks of their own run the other lanes' steps. Bound by
// latency.
#include "kernels/linear/linear_exact.cuh"
#include "kernels/token_ops/token_steps.cuh"
#include "kernels/token_products/token_products_impl.h"

namespace tamis {
namespace {

using namespace token_steps;  // this file is a body of that header
using exact::kLanes, exact::kStreamRows;

constexpr int kMostProducts = 4, kMostBeside = 9;
constexpr int kBlockRows = kWarps * kStreamRows;  // rows of W
constexpr int64_t kMostWidth = 2048;              // floats of shared memory
constexpr int64_t kMostBlocks = 256;              // each makes the norm

// What happens before the norm, in the order of lane 0.
struct Before {
  EmbeddingArgs embedding;
  MoeCombineArgs combine;
  CheckFiniteArgs check;  // of norm.delta
  bool embeds = false, combines = false, checks = false;
};

struct alignas(16) Plan {
  Step steps[kMostBeside];
  LinearArgs products[kMostProducts];
  Before before;
  RmsNormArgs norm;
  int num_steps, num_products, lanes;  // lanes: 1 .. lanes have blocks
  int end[kMostProducts];              // of each product's blocks
};

// Column c of what the norm reads. `keeps`: what steps before the norm give goes to memory, too.
// *bad: set if the delta is not finite.
__device__ float stream_value(const Plan& a, int64_t c, bool keeps, bool* bad) {
  float v;
  if (a.before.embeds) {
    const EmbeddingArgs& e = a.before.embedding;
    const int64_t row = e.ids[0] - e.first_id;
    v = row >= 0 && row < e.w.rows ? weight_value(e.w, row, c) : -0.0F;
    if (keeps) e.y[c] = v;
  } else {
    v = a.norm.x[c];
  }
  if (a.norm.delta == nullptr) return v;
  float delta[1] = {};
  if (a.before.combines) {
    combine_sums<false>(a.before.combine, 0, c, delta);
    if (keeps) a.before.combine.y[c] = delta[0];
  } else {
    delta[0] = a.norm.delta[c];
  }
  *bad |= !isfinite(delta[0]);
  return v + delta[0];
}

// rms_norm_row of the token, to shared memory.
__device__ void norm_token(const Plan& a, bool keeps, float* row) {
  const RmsNormArgs& n = a.norm;
  if (threadIdx.x < n.width) ptx::prefetch_l1(n.w + threadIdx.x);
  double sum = 0;
  bool bad = false;
  for (int64_t c = threadIdx.x; c < n.width; c += kThreads) {
    const float v = stream_value(a, c, keeps, &bad);
    row[c] = v;
    sum += static_cast<double>(v) * v;
  }
  const auto mean = static_cast<float>(block_sum<kThreads>(sum) / static_cast<double>(n.width));
  const float scale = 1.0f / sqrtf(mean + n.eps);
  for (int64_t c = threadIdx.x; c < n.width; c += kThreads) row[c] = n.w[c] * (row[c] * scale);
  bad = __syncthreads_or(bad) != 0;
  const CheckFiniteArgs& check = a.before.check;
  if (bad && keeps && a.before.checks && threadIdx.x == 0) {
    atomicCAS(&check.failed[check.sequence[check.token == nullptr ? 0 : check.token[0]]], -1,
              check.mark);
  }
}

template <DType T>
__global__ void __launch_bounds__(kThreads)
    token_products_kernel(const __grid_constant__ Plan given) {
  extern __shared__ __align__(16) float row[];
  __shared__ __align__(16) std::byte plan[sizeof(Plan)];
  __shared__ float part[kWarps][kStreamRows][kLanes + 1];
  const Plan& a = *fetch(given, plan);
  const int block = static_cast<int>(blockIdx.x) - a.lanes;
  if (block < 0) {
    return run_lane(a.steps, a.num_steps, static_cast<int>(blockIdx.x) + 1, 0, 1);
  }
  int which = 0, begin = 0;
  while (block >= a.end[which]) begin = a.end[which++];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  LinearArgs p = a.products[which];
  const int64_t r0 = int64_t{block - begin} * kBlockRows + warp * kStreamRows;
  exact::prefetch_rows(p.w, r0, lane);
  norm_token(a, block == 0, row);
  if (r0 >= p.w.rows) return;
  p.x = row;
  p.x_stride = 0;
  float sum[kStreamRows][1] = {};
  exact::stream_lane<T, 1, true>(p, r0, 0, lane, sum);
  for (int r = 0; r < kStreamRows; ++r) part[warp][r][lane] = sum[r][0];
  __syncwarp();
  if (lane >= kStreamRows || r0 + lane >= p.w.rows) return;
  float total = 0;
  for (int l = 0; l < kLanes; ++l) total += part[warp][lane][l];
  p.y[r0 + lane] = total;
}

// The steps of lane 0, if token_products_kernel has them.
struct Row {
  const RmsNormArgs* norm = nullptr;
  Before before;
  bool known = true;
};

Row row_of(const TokenProductsArgs& args) {
  Row row;
  for (const TokenStep& s : args.steps) {
    if (s.lane != 0) continue;
    row.known = row.known && row.norm == nullptr;
    if (const auto* norm = std::get_if<RmsNormArgs>(&s.op)) {
      row.norm = norm;
    } else if (const auto* e = std::get_if<EmbeddingArgs>(&s.op); e && !row.before.embeds) {
      row.before.embedding = *e;
      row.before.embeds = true;
    } else if (const auto* c = std::get_if<MoeCombineArgs>(&s.op); c && !row.before.combines) {
      row.before.combine = *c;
      row.before.combines = true;
    } else if (const auto* f = std::get_if<CheckFiniteArgs>(&s.op); f && !row.before.checks) {
      row.before.check = *f;
      row.before.checks = true;
    } else {
      row.known = false;
    }
  }
  row.known = row.known && row.norm != nullptr && !row.norm->round_bf16 &&
              row.norm->y_bf16 == nullptr &&
              (!row.before.embeds || row.before.embedding.y == row.norm->x) &&
              (!row.before.combines || row.before.combine.y == row.norm->delta) &&
              (!row.before.checks ||
               (row.before.check.x == row.norm->delta && row.norm->delta != nullptr &&
                row.before.check.rows == 1 && row.before.check.width == row.norm->width));
  return row;
}

int64_t blocks_of(const LinearArgs& p) { return (p.w.rows + kBlockRows - 1) / kBlockRows; }

}  // namespace

bool token_products_cuda_supports(int64_t tokens, const TokenProductsArgs& args) {
  if (tokens != 1 || args.products.empty() || args.products.size() > kMostProducts) return false;
  const Row row = row_of(args);
  if (!row.known || row.norm->width > kMostWidth) return false;
  const DType dtype = args.products[0].w.dtype;
  int64_t blocks = 0, beside = 0;
  for (const LinearArgs& p : args.products) {
    if (p.w.dtype != dtype || p.x != row.norm->y || p.w.cols != row.norm->width || p.m != 1) {
      return false;
    }
    blocks += blocks_of(p);
  }
  for (const TokenStep& s : args.steps) beside += s.lane != 0 ? 1 : 0;
  return (dtype == DType::kBF16 || dtype == DType::kF32) && blocks <= kMostBlocks &&
         beside <= kMostBeside;
}

bool token_products_cuda(KernelContext& context, const TokenProductsArgs& args) {
  const Row row = row_of(args);
  Plan a;
  a.before = row.before;
  a.norm = *row.norm;
  a.num_steps = a.num_products = a.lanes = 0;
  TokenStep beside[kMostBeside];
  for (const TokenStep& s : args.steps) {
    if (s.lane == 0) continue;
    beside[a.num_steps] = s;
    a.steps[a.num_steps++] = on_device(s);
    a.lanes = std::max(a.lanes, s.lane);
  }
  join_entries({beside, static_cast<size_t>(a.num_steps)}, a.steps);
  int blocks = 0;
  for (const LinearArgs& p : args.products) {
    blocks += static_cast<int>(blocks_of(p));
    a.products[a.num_products] = p;
    a.end[a.num_products++] = blocks;
  }
  const auto kernel = args.products[0].w.dtype == DType::kF32 ? token_products_kernel<DType::kF32>
                                                              : token_products_kernel<DType::kBF16>;
  const auto shared = static_cast<size_t>(row.norm->width) * sizeof(float);
  kernel<<<static_cast<unsigned>(a.lanes + blocks), kThreads, shared, stream_of(context)>>>(a);
  check_launch("token_products");
  return row.norm->delta != nullptr;
}

}  // namespace tamis
