// Products of many rows by cuBLASLt, for those who want its speed more than the same bits in every
// batch: cuBLASLt picks the order of its sums by shape, so a prompt's tokens depend on how it was
// cut. Never chosen by itself: force("linear_tiles", "cuda_cublaslt").
#pragma once

#include "kernels/linear/linear_products.h"

namespace tamis {

// How many of a product's rows of x cuBLASLt has a form for, the first ones. BF16 (not fp8): all,
// if rows of W lie at multiples of 16 bytes. F8_E4M3: on capability 9.0 alone, with whole blocks of
// 128 columns, rows of W by 16 and scales by 4; rows of x by 16.
int64_t cublaslt_rows(const LinearArgs& a, bool fp8, int sm);

// y = x W^T in float32. x as XLayout::kRows has it (BF16) or XLayout::kCodes (FP8), x_stride
// columns. DeviceError if the library cannot be loaded or refuses.
void product_cublaslt(KernelContext& context, const LinearArgs& a, bool fp8, const PreparedX& x,
                      int64_t x_stride);

}  // namespace tamis
