// The elementwise operations on CUDA. Bound by memory: every value is read and written once. The
// bits are the reference's.
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/elementwise/elementwise_impl.h"
#include "kernels/elementwise/elementwise_row.cuh"

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

// One block a row.
__global__ void __launch_bounds__(kThreads) check_rows_kernel(const CheckFiniteArgs a) {
  check_row(a, blockIdx.x);
}

__global__ void check_flags_kernel(const CheckFlagsArgs a) {
  for (int64_t t = first_index(); t < a.tokens; t += index_step()) check_flag(a, t);
}

// One warp a query.
__global__ void index_query_kernel(const IndexQueryArgs a) { index_query_row(a, blockIdx.x); }

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
  launch<CheckFiniteArgs>(context, check_rows_kernel, a, a.rows, kThreads, "check_finite");
}
void check_flags_cuda(KernelContext& context, const CheckFlagsArgs& a) {
  launch<CheckFlagsArgs>(context, check_flags_kernel, a, blocks_for(a.tokens), kThreads,
                         "check_flags");
}
void index_query_cuda(KernelContext& context, const IndexQueryArgs& a) {
  launch<IndexQueryArgs>(context, index_query_kernel, a, a.rows, 32, "index_query");
}
void select_window_cuda(KernelContext& context, const SelectWindowArgs& a) {
  launch<SelectWindowArgs>(context, select_window_kernel, a, blocks_for(a.tokens * a.k), kThreads,
                           "select_window");
}

}  // namespace tamis
