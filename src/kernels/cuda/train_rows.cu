// A block a row. The scatter marks in a bit for each (position, token) that the token selected the
// position; a block for each position then takes its tokens in order and looks up their slots.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/train_rows.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;

// The largest over the block, NaN if one is.
__device__ float block_max_nan(float x) {
  __shared__ float part[kThreads / 32];
  for (int d = 16; d > 0; d /= 2) x = ptx::max_nan(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
  __syncthreads();
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  x = part[0];
  for (int w = 1; w < kThreads / 32; ++w) x = ptx::max_nan(x, part[w]);
  return x;
}

// Entries of row r that count.
__device__ int64_t entries(const RowSet& set, int64_t r) {
  if (set.indices == nullptr) return min(set.offset + r + 1, set.stride);
  const int32_t* row = set.indices + r * set.stride;
  int64_t low = 0, high = set.stride;  // the first -1
  while (low < high) {
    const int64_t mid = (low + high) / 2;
    if (row[mid] >= 0) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

__device__ int64_t row_of_block(const RowSet& set) {
  return static_cast<int64_t>(blockIdx.y) * set.rows + blockIdx.x;
}

// Where the zeros of row r end: what the products of causal attention read past its entries lies in
// their tile of 128 and the step of 32 before it.
__device__ int64_t zeros_end(const RowSet& set, int64_t n) {
  constexpr int64_t kPast = 2 * 128 + 32;
  return set.indices == nullptr ? min(set.stride, n + kPast) : set.stride;
}

// A row of up to kHeld * kThreads entries is held in registers between the passes over it; a longer
// one is read again each time.
constexpr int kHeld = 8;

template <bool kHold>
struct Row {
  __device__ Row(const float* x, int64_t n) : x_(x) {
    if constexpr (kHold) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int64_t s = threadIdx.x + i * kThreads;
        if (s < n) held_[i] = x[s];
      }
    }
  }
  // body(s, the value at s) for this thread's entries.
  template <typename Body>
  __device__ void each(int64_t n, const Body& body) {
    if constexpr (kHold) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int64_t s = threadIdx.x + i * kThreads;
        if (s < n) body(s, held_[i]);
      }
    } else {
      for (int64_t s = threadIdx.x; s < n; s += kThreads) {
        float x = x_[s];
        body(s, x);
      }
    }
  }

 private:
  const float* x_;
  float held_[kHold ? kHeld : 1];
};

template <bool kHold>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(RowSet set, float scale, float* buffer, float* log_sum) {
  float* x = buffer + row_of_block(set) * set.stride;
  const int64_t n = entries(set, blockIdx.x), end = zeros_end(set, n);
  Row<kHold> row(x, n);
  float top = -INFINITY;
  row.each(n, [&](int64_t, float v) { top = ptx::max_nan(top, scale * v); });
  top = block_max_nan(top);
  float sum = 0;
  row.each(n, [&](int64_t s, float& v) {
    v = expf(scale * v - top);
    sum += v;
    if (!kHold) x[s] = v;
  });
  sum = block_sum<kThreads>(sum);
  const float factor = 1.0f / sum;
  if (log_sum != nullptr && threadIdx.x == 0) {
    constexpr float kLog2e = 1.4426950408889634F;
    log_sum[static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = top * kLog2e + log2f(sum);
  }
  row.each(n, [&](int64_t s, float v) { x[s] = v * factor; });
  for (int64_t s = n + threadIdx.x; s < end; s += kThreads) x[s] = 0;
}

template <bool kHold>
__global__ void __launch_bounds__(kThreads)
    softmax_backward_kernel(RowSet set, float scale, const float* probabilities, float* gradients) {
  const float* p = probabilities + row_of_block(set) * set.stride;
  float* dp = gradients + row_of_block(set) * set.stride;
  const int64_t n = entries(set, blockIdx.x), end = zeros_end(set, n);
  Row<kHold> row(dp, n);
  float sum = 0;
  row.each(n, [&](int64_t s, float v) { sum = fmaf(p[s], v, sum); });
  const float mean = block_sum<kThreads>(sum);
  row.each(n, [&](int64_t s, float v) { dp[s] = scale * p[s] * (v - mean); });
  for (int64_t s = n + threadIdx.x; s < end; s += kThreads) dp[s] = 0;
}

__global__ void __launch_bounds__(kThreads)
    mean_kernel(RowSet set, int64_t groups, const float* p, float* mean) {
  const int64_t r = blockIdx.x, n = entries(set, r);
  const float share = 1.0f / static_cast<float>(groups);
  for (int64_t s = threadIdx.x; s < set.stride; s += kThreads) {
    float sum = 0;
    for (int64_t g = 0; s < n && g < groups; ++g) sum += p[(g * set.rows + r) * set.stride + s];
    mean[r * set.stride + s] = sum * share;
  }
}

__global__ void __launch_bounds__(kThreads) index_kl_kernel(RowSet set, IndexRows x) {
  const int64_t r = blockIdx.x, n = entries(set, r), head_stride = set.rows * set.stride;
  float* a = x.a + r * set.stride;
  const float* w = x.w + r * x.heads;
  const float* p = x.p + r * set.stride;
  float* score = x.score + r * set.stride;
  float top = -INFINITY;
  for (int64_t s = threadIdx.x; s < n; s += kThreads) {
    float sum = 0;
    for (int64_t j = 0; j < x.heads; ++j) sum = fmaf(w[j], fmaxf(a[j * head_stride + s], 0), sum);
    score[s] = sum;
    top = ptx::max_nan(top, sum);
  }
  top = block_max_nan(top);
  double sum = 0;
  for (int64_t s = threadIdx.x; s < n; s += kThreads) {
    sum += exp(static_cast<double>(score[s]) - top);
  }
  const double lse = top + log(block_sum<kThreads>(sum));
  double kl = 0;
  for (int64_t s = threadIdx.x; s < n; s += kThreads) {
    const double log_q = score[s] - lse, target = p[s];
    if (target > 0) kl += target * (log(target) - log_q);
    score[s] = static_cast<float>(x.scale * (exp(log_q) - target));
  }
  kl = block_sum<kThreads>(kl);
  if (threadIdx.x == 0) x.kl[r] = kl;
  for (int64_t j = 0; j < x.heads; ++j) {
    float* product = a + j * head_stride;
    float dw = 0;
    for (int64_t s = threadIdx.x; s < set.stride; s += kThreads) {
      float gradient = 0;
      if (s < n && product[s] > 0) {
        dw = fmaf(score[s], product[s], dw);
        gradient = score[s] * w[j];
      }
      product[s] = gradient;
    }
    dw = block_sum<kThreads>(dw);
    if (threadIdx.x == 0) x.dw[r * x.heads + j] = dw;
  }
}

__global__ void __launch_bounds__(kThreads)
    add_groups_kernel(const float* x, int64_t groups, int64_t count, float* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = to[i];
  for (int64_t g = 0; g < groups; ++g) sum += x[g * count + i];
  to[i] = sum;
}

__global__ void __launch_bounds__(kThreads)
    spread_kernel(RowSet set, const float* x, int64_t positions, float* to) {
  const float* from = x + row_of_block(set) * set.stride;
  float* row = to + row_of_block(set) * positions;
  for (int64_t i = threadIdx.x; i < set.stride; i += kThreads) {
    const int64_t s = set.indices[blockIdx.x * set.stride + i];
    if (s >= 0) row[s] = from[i];
  }
}

// Where the positions of a token's row lie in it: the first slot of every eight positions that has
// one, [tokens][eights]; `slots` null: they are searched for.
struct Slots {
  uint16_t* slots = nullptr;
  int64_t eights = 0;
};
constexpr int64_t kMostSlots = int64_t{1} << 27;

// Bit b of a position's marks: token b of its sequence (of the block, if that is all) selected it.
__global__ void __launch_bounds__(kThreads)
    mark_kernel(const ScatterRows x, int64_t words, uint32_t* marks, const Slots table) {
  const int64_t t = blockIdx.x;
  const int32_t* position = x.sequences.position;
  const int64_t bit = position == nullptr ? t : position[x.first + t];
  const int64_t begin = position == nullptr ? 0 : x.first + t - bit;  // of the positions
  const int32_t* row = x.indices + t * x.k;
  for (int64_t i = threadIdx.x; i < x.k; i += kThreads) {
    const int64_t s = row[i];
    if (s < 0) continue;
    atomicOr(marks + s * words + bit / 32, 1u << (bit % 32));  // bits have no order
    const int64_t eight = (s - begin) / 8;
    if (table.slots != nullptr && (i == 0 || (row[i - 1] - begin) / 8 != eight)) {
      table.slots[t * table.eights + eight] = static_cast<uint16_t>(i);
    }
  }
}

// The slot of `position`, which the row has, number `at` of its sequence.
__device__ int64_t slot_of(const ScatterRows& x, const Slots& table, int64_t t, int32_t position,
                           int64_t at) {
  const int32_t* row = x.indices + t * x.k;
  if (table.slots != nullptr) {
    int64_t slot = table.slots[t * table.eights + at / 8];
    while (row[slot] < position) ++slot;
    return slot;
  }
  int64_t low = 0, high = x.k;  // the first entry that is `position`, more, or -1
  while (low < high) {
    const int64_t mid = (low + high) / 2;
    if (row[mid] >= 0 && row[mid] < position) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const ScatterRows x, int64_t words, const uint32_t* marks, const Slots table) {
  constexpr int kColumns = 4;
  const int64_t s = blockIdx.x, column0 = static_cast<int64_t>(blockIdx.y) * kColumns * kThreads;
  __shared__ int64_t pairs[32];
  const int32_t* position = x.sequences.position;
  const int64_t at_s = position == nullptr ? 0 : position[s];  // no earlier token selects s
  const int64_t begin = position == nullptr ? 0 : s - at_s - x.first;
  float sum[kColumns];
  float* to[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int64_t c = column0 + threadIdx.x + j * kThreads;
    to[j] = c < x.split ? x.to + s * x.split + c : x.rest + s * (x.width - x.split) + c - x.split;
    sum[j] = c < x.width ? *to[j] : 0;
  }
  for (int64_t word = at_s / 32; word < words; ++word) {
    const uint32_t bits = marks[s * words + word];
    if (bits == 0) continue;
    __syncthreads();
    if (threadIdx.x < 32 && (bits >> threadIdx.x & 1) != 0) {
      const int64_t t = begin + word * 32 + threadIdx.x;
      const int at = __popc(bits & ((1u << threadIdx.x) - 1));
      pairs[at] =
          t * x.k + slot_of(x, table, t, static_cast<int32_t>(s), position == nullptr ? s : at_s);
    }
    __syncthreads();
    const int count = __popc(bits);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float* row = x.rows + pairs[i] * x.width + column0;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int64_t c = threadIdx.x + j * kThreads;
        if (column0 + c < x.width) sum[j] += row[c];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    if (column0 + threadIdx.x + j * kThreads < x.width) *to[j] = sum[j];
  }
}

// A block adds 32 rows of a token, a warp one after the other.
__global__ void __launch_bounds__(kThreads) add_kernel(const ScatterRows x) {
  const int64_t t = blockIdx.x, first = int64_t{blockIdx.y} * 32;
  for (int64_t i = first + threadIdx.x / 32; i < min(first + 32, x.k); i += kThreads / 32) {
    const int64_t s = x.indices[t * x.k + i];
    if (s < 0) return;
    const float* row = x.rows + (t * x.k + i) * x.width;
    for (int64_t c = threadIdx.x % 32; c < x.width; c += 32) {
      atomicAdd(
          c < x.split ? x.to + s * x.split + c : x.rest + s * (x.width - x.split) + c - x.split,
          row[c]);
    }
  }
}

dim3 grid_of(const RowSet& set, int64_t groups) {
  return {static_cast<unsigned>(set.rows), static_cast<unsigned>(groups)};
}

bool held(const RowSet& set) { return set.stride <= kHeld * kThreads; }

}  // namespace

void softmax_rows(KernelContext& context, const RowSet& set, int64_t groups, float scale, float* x,
                  float* log_sum) {
  const auto kernel = held(set) ? softmax_kernel<true> : softmax_kernel<false>;
  kernel<<<grid_of(set, groups), kThreads, 0, stream_of(context)>>>(set, scale, x, log_sum);
  check_launch("softmax_rows");
}

void softmax_backward_rows(KernelContext& context, const RowSet& set, int64_t groups, float scale,
                           const float* p, float* dp) {
  const auto kernel = held(set) ? softmax_backward_kernel<true> : softmax_backward_kernel<false>;
  kernel<<<grid_of(set, groups), kThreads, 0, stream_of(context)>>>(set, scale, p, dp);
  check_launch("softmax_backward_rows");
}

void mean_rows(KernelContext& context, const RowSet& set, int64_t groups, const float* p,
               float* mean) {
  mean_kernel<<<grid_of(set, 1), kThreads, 0, stream_of(context)>>>(set, groups, p, mean);
  check_launch("mean_rows");
}

void index_kl_rows(KernelContext& context, const RowSet& set, const IndexRows& x) {
  index_kl_kernel<<<grid_of(set, 1), kThreads, 0, stream_of(context)>>>(set, x);
  check_launch("index_kl_rows");
}

void add_groups(KernelContext& context, const float* x, int64_t groups, int64_t count, float* to) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  add_groups_kernel<<<blocks, kThreads, 0, stream_of(context)>>>(x, groups, count, to);
  check_launch("add_groups");
}

void spread_rows(KernelContext& context, const RowSet& set, int64_t groups, const float* x,
                 int64_t positions, float* to) {
  context.device()->fill(to, 0, groups * set.rows * positions * 4);
  spread_kernel<<<grid_of(set, groups), kThreads, 0, stream_of(context)>>>(set, x, positions, to);
  check_launch("spread_rows");
}

bool adds_atomically(const KernelContext& context) {
  return !context.allowed("scatter_rows", "cuda");
}

void scatter_rows(KernelContext& context, const ScatterRows& rows) {
  ScatterRows x = rows;
  // A position has a bit for each token of its sequence, or of the call where those are fewer.
  if (x.tokens <= x.sequences.longest) x.sequences = {};
  if (adds_atomically(context)) {
    context.note("scatter_rows", "cuda_atomic");
    const dim3 grid(static_cast<unsigned>(x.tokens), static_cast<unsigned>((x.k + 31) / 32));
    add_kernel<<<grid, kThreads, 0, stream_of(context)>>>(x);
    return check_launch("scatter_rows");
  }
  const bool one = x.sequences.position == nullptr;
  const int64_t words = ((one ? x.tokens : x.sequences.longest) + 31) / 32;
  const int64_t bytes = x.positions * words * 4;
  Slots table;
  table.eights = ((one ? x.positions : x.sequences.longest) + 7) / 8;
  const bool listed = x.k <= UINT16_MAX && x.tokens * table.eights <= kMostSlots &&
                      context.allowed("scatter_slots", "cuda_listed");
  auto* marks = static_cast<uint32_t*>(
      device_scratch(context, 7, bytes + (listed ? x.tokens * table.eights * 2 : 0)));
  if (listed) table.slots = reinterpret_cast<uint16_t*>(marks + bytes / 4);
  context.device()->fill(marks, 0, bytes);
  mark_kernel<<<static_cast<unsigned>(x.tokens), kThreads, 0, stream_of(context)>>>(x, words, marks,
                                                                                    table);
  check_launch("mark_rows");
  const dim3 grid(static_cast<unsigned>(x.positions),
                  static_cast<unsigned>((x.width + 1023) / 1024));
  scatter_kernel<<<grid, kThreads, 0, stream_of(context)>>>(x, words, marks, table);
  check_launch("scatter_rows");
}

}  // namespace tamis
