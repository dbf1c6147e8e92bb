// The CUDA implementation of fp8_products: codes and scales, and the kernels on them.
#pragma once

#include "kernels/fp8_products/fp8_products.h"

namespace tamis {

namespace fp8 {

// One side of a product, lines of codes along the inner index in whole blocks of 128, padded with
// zeros; the scale of line i's block k is scales[k * scale_pitch + (i >> scale_shift)].
struct Codes {
  uint8_t* codes = nullptr;
  int64_t pitch = 0;
  float* scales = nullptr;
  int64_t scale_pitch = 0;
  int scale_shift = 0;                        // 7: a scale for 128 lines
  int64_t group_codes = 0, group_scales = 0;  // from one group's matrix to the next
};

// C[i, j] (+)= sum_k A[i, k] B[j, k]
struct Product {
  Codes a, b;
  float* c = nullptr;
  int64_t c_row = 0, c_group = 0;  // strides; c_group over inner alone
  int64_t m = 0, n = 0;
  int64_t blocks = 0;  // along the inner index: of all; over inner with groups: of all at most
  bool add = false;
  // Rows of A and C are the groups' (over_inner false), or the inner index is.
  const int64_t* offsets = nullptr;
  int64_t groups = 1, rows = 0;
  bool over_inner = false;
};

void codes_across(KernelContext& context, const Fp8Rows& x, const Codes& to);
// `across` only if its codes are not null.
void codes_down(KernelContext& context, const Fp8Rows& x, const Fp8Groups& groups,
                const Codes& across, const Codes& down);
// Of w [rows, cols]: lines are rows, or with `turned` columns.
void codes_of_weight(KernelContext& context, const float* w, int64_t rows, int64_t cols,
                     const Fp8Groups& groups, bool turned, const Codes& to);
void multiply(KernelContext& context, const Product& p);

}  // namespace fp8

void fp8_products_forward_cuda(KernelContext& context, const Fp8ForwardArgs& args);
void fp8_products_backward_cuda(KernelContext& context, const Fp8BackwardArgs& args);
// Whether this build has them.
bool has_fp8_products_cuda();

}  // namespace tamis
