// The elementwise operations on CUDA. Bound by memory: every value is read and written once. The
// bits are the reference's.
#include <algorithm>
#include <vector>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/elementwise/elementwise_impl.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;

unsigned blocks_for(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

__device__ int64_t first_index() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
__device__ int64_t index_step() { return int64_t{gridDim.x} * kThreads; }

__global__ void fill_kernel(const FillArgs a) {
  for (int64_t i = first_index(); i < a.n; i += index_step()) a.x[i] = a.value;
}

__global__ void round_rows_kernel(const RoundRowsArgs a) {
  const int64_t n = a.rows * a.width;
  for (int64_t i = first_index(); i < n; i += index_step()) {
    float& x = a.x[i / a.width * a.stride + i % a.width];
    x = round_bf16(x);
  }
}

__global__ void gather_rows_kernel(const GatherRowsArgs a) {
  const int64_t n = a.rows * a.width;
  for (int64_t i = first_index(); i < n; i += index_step()) {
    a.y[i] = a.x[a.row[i / a.width] * a.width + i % a.width];
  }
}

// A check of rows, or of flags where they are given.
struct Check {
  CheckFiniteArgs rows;
  const uint8_t* flags = nullptr;
};

// One block a row, or for each kThreads flags.
__global__ void __launch_bounds__(kThreads) check_kernel(const Several<Check> checks) {
  const Check& check = checks.list[blockIdx.y];
  const CheckFiniteArgs& a = check.rows;
  if (check.flags != nullptr) {
    const int64_t t = first_index();
    if (t < a.rows && check.flags[t] != 0) atomicCAS(&a.failed[a.sequence[t]], -1, a.mark);
    return;
  }
  const int64_t row = blockIdx.x;
  if (row >= a.rows) return;
  bool bad = false;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) {
    bad |= !isfinite(a.x[row * a.width + i]);
  }
  if (!__syncthreads_or(bad) || threadIdx.x != 0) return;
  const int64_t token = a.token == nullptr ? row : a.token[row];
  atomicCAS(&a.failed[a.sequence[token]], -1, a.mark);
}

constexpr float kSmallestAmax = 1e-4F;

// The largest |x| of up to 128 values, over the lanes of a warp; NaN does not count, as in
// act_quant_row.
__device__ float block_amax(const float* x, int64_t n) {
  float amax = kSmallestAmax;
  for (int64_t i = threadIdx.x; i < n; i += 32) amax = fmaxf(amax, fabsf(x[i]));
  for (int offset = 16; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, offset));
  }
  return amax;
}

__device__ float scale_of(const float* x, int64_t n, bool ue8m0) {
  const float scale = block_amax(x, n) * (1.0F / 448.0F);
  return ue8m0 ? ceil_power_of_two(scale) : scale;
}

// One warp a query.
__global__ void index_query_kernel(const IndexQueryArgs a) {
  const int64_t row = blockIdx.x;
  float w = a.w[row] * a.head_scale;
  if (a.native) {
    float* q = a.q + row * a.dim;
    const float scale0 = scale_of(q, a.dim < kFp8Block ? a.dim : kFp8Block, a.ue8m0);
    for (int64_t begin = 0; begin < a.dim; begin += kFp8Block) {
      const int64_t n = a.dim - begin < kFp8Block ? a.dim - begin : kFp8Block;
      const float scale = begin == 0 ? scale0 : scale_of(q + begin, n, a.ue8m0);
      for (int64_t i = begin + threadIdx.x; i < begin + n; i += 32) {
        q[i] = e4m3_bits_to_float(float_to_e4m3_bits(q[i] / scale)) * (scale / scale0);
      }
    }
    w = round_bf16(w) * scale0;
  }
  if (threadIdx.x == 0) a.w[row] = w * a.dim_scale;
}

__global__ void select_window_kernel(const SelectWindowArgs a) {
  const int64_t n = a.tokens * a.k;
  for (int64_t i = first_index(); i < n; i += index_step()) {
    const int64_t end = a.position[i / a.k] + int64_t{1};
    const int64_t begin = end > a.k ? end - a.k : 0, p = begin + i % a.k;
    a.indices[i] = p < end ? static_cast<int32_t>(p) : -1;
  }
}

template <typename Args>
void launch(KernelContext& context, void (*kernel)(Args), const Args& args, int64_t blocks,
            int threads, const char* name) {
  if (blocks == 0) return;
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_of(context)>>>(args);
  check_launch(name);
}

Check of_flags(const CheckFlagsArgs& a) {
  return {{nullptr, a.tokens, 0, nullptr, a.sequence, a.mark, a.failed}, a.flags};
}

void run_checks(KernelContext& context, const std::vector<Check>& checks) {
  in_groups(std::span<const Check>(checks), [&](const Several<Check>& group) {
    int64_t blocks = 0;
    for (int i = 0; i < group.count; ++i) {
      const int64_t rows = group.list[i].rows.rows;
      const bool flags = group.list[i].flags != nullptr;
      blocks = std::max(blocks, flags ? (rows + kThreads - 1) / kThreads : rows);
    }
    if (blocks == 0) return;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(group.count));
    check_kernel<<<grid, kThreads, 0, stream_of(context)>>>(group);
    check_launch("check_all");
  });
}

}  // namespace

void fill_cuda(KernelContext& context, const FillArgs& a) {
  launch<FillArgs>(context, fill_kernel, a, blocks_for(a.n), kThreads, "fill");
}
void round_rows_cuda(KernelContext& context, const RoundRowsArgs& a) {
  launch<RoundRowsArgs>(context, round_rows_kernel, a, blocks_for(a.rows * a.width), kThreads,
                        "round_rows");
}
void gather_rows_cuda(KernelContext& context, const GatherRowsArgs& a) {
  launch<GatherRowsArgs>(context, gather_rows_kernel, a, blocks_for(a.rows * a.width), kThreads,
                         "gather_rows");
}
void check_finite_cuda(KernelContext& context, const CheckFiniteArgs& a) {
  run_checks(context, {{a, nullptr}});
}
void check_flags_cuda(KernelContext& context, const CheckFlagsArgs& a) {
  run_checks(context, {of_flags(a)});
}
void check_all_cuda(KernelContext& context, const Checks& checks) {
  std::vector<Check> all;
  for (const CheckFiniteArgs& a : checks.rows) all.push_back({a, nullptr});
  for (const CheckFlagsArgs& a : checks.flags) all.push_back(of_flags(a));
  run_checks(context, all);
}
void index_query_cuda(KernelContext& context, const IndexQueryArgs& a) {
  launch<IndexQueryArgs>(context, index_query_kernel, a, a.rows, 32, "index_query");
}
void select_window_cuda(KernelContext& context, const SelectWindowArgs& a) {
  launch<SelectWindowArgs>(context, select_window_kernel, a, blocks_for(a.tokens * a.k), kThreads,
                           "select_window");
}

}  // namespace tamis
