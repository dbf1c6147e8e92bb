// Vector loops over one row that the backward passes of attention and of the indexer share. Sums
// have eight lanes in the order of lanes-inl.h, so bits depend on the row alone. Only where
// vectors_available().
#pragma once

#include <cstdint>

namespace tamis {

// x <- softmax(scale * x) over [0, n), 0 over [n, width). n >= 1. NaN spreads over the row.
void softmax_row(float* x, int64_t n, int64_t width, float scale);

// dp <- scale * p * (dp - sum p dp): the gradient of the scores, of scale included.
void softmax_backward_row(const float* p, float* dp, int64_t n, float scale);

// sum += x, element by element.
void add_row(const float* x, int64_t n, float* sum);

// One query of the indexer: a [heads, stride] holds q_j . k[s].
//   out[s] = sum_j w[j] ReLU(a[j,s]), j in order
void index_score_row(const float* a, int64_t stride, const float* w, int64_t heads, int64_t n,
                     float* out);
// Given the gradient di of the scores: dw[j] = sum_s di[s] ReLU(a[j,s]), and a[j,s] becomes the
// gradient of q_j . k[s], di[s] w[j] where a[j,s] > 0, else 0; 0 over [n, width).
void index_score_backward_row(float* a, int64_t stride, const float* w, int64_t heads,
                              const float* di, int64_t n, int64_t width, float* dw);

}  // namespace tamis
