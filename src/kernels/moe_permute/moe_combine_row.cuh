// Columns of a token of moe_combine, for its kernel and that of token_ops. The sum and its
// roundings are the reference's.
#pragma once

#include <cuda_runtime.h>

#include "kernels/moe_permute/moe_permute.h"

namespace tamis {

// Whether four neighbouring columns may be read and written at once.
__host__ __device__ inline bool combines_by_fours(const MoeCombineArgs& a) {
  const auto all = reinterpret_cast<uintptr_t>(a.rows) | reinterpret_cast<uintptr_t>(a.y) |
                   reinterpret_cast<uintptr_t>(a.shared);
  return a.width % 4 == 0 && all % sizeof(float4) == 0;
}

// Column c of token t; kWide: c .. c + 3. sum: of zeros.
template <bool kWide>
__device__ inline void combine_sums(const MoeCombineArgs& a, int64_t t, int64_t c,
                                    float (&sum)[kWide ? 4 : 1]) {
  constexpr int kColumns = kWide ? 4 : 1;
  float row[kColumns];
  const auto load = [&](const float* p) {
    if constexpr (kWide) {
      const float4 v = *reinterpret_cast<const float4*>(p);
      row[0] = v.x, row[1] = v.y, row[2] = v.z, row[3] = v.w;
    } else {
      row[0] = *p;
    }
  };
#pragma unroll 4
  for (int64_t i = 0; i < a.num_chosen; ++i) {
    const int64_t pair = t * a.num_chosen + i;
    const float weight = a.weights[pair];
    load(a.rows + a.row_of[pair] * a.width + c);
    for (int k = 0; k < kColumns; ++k) sum[k] += weight * row[k];
  }
  if (a.shared != nullptr) {
    load(a.shared + t * a.width + c);
    for (int k = 0; k < kColumns; ++k) sum[k] += row[k];
  }
}

template <bool kWide>
__device__ inline void combine_columns(const MoeCombineArgs& a, int64_t t, int64_t c) {
  constexpr int kColumns = kWide ? 4 : 1;
  float sum[kColumns] = {};
  combine_sums<kWide>(a, t, c, sum);
  for (int k = 0; k < kColumns; ++k) a.y[t * a.width + c + k] = sum[k];
}

}  // namespace tamis
