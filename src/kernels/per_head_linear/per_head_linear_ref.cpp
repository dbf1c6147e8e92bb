#include <vector>

#include "kernels/per_head_linear/per_head_linear_impl.h"

namespace tamis {
namespace {

void head_forward(const PerHeadLinearArgs& a, int64_t h, float* row) {
  for (int64_t r = 0; r < a.rows; ++r) {
    dequantize_row(a.w, h * a.head_rows + a.row_offset + r, 0, a.w.cols, row);
    for (int64_t t = 0; t < a.num_tokens; ++t) {
      const float* x = a.x + t * a.x_token_stride + h * a.x_head_stride;
      double sum = 0;
      for (int64_t c = 0; c < a.w.cols; ++c) sum += static_cast<double>(row[c]) * x[c];
      a.y[t * a.y_token_stride + h * a.y_head_stride + r] = static_cast<float>(sum);
    }
  }
}

void head_transposed(const PerHeadLinearArgs& a, int64_t h, float* row) {
  std::vector<double> sums(static_cast<size_t>(a.num_tokens * a.w.cols));
  for (int64_t r = 0; r < a.rows; ++r) {
    dequantize_row(a.w, h * a.head_rows + a.row_offset + r, 0, a.w.cols, row);
    for (int64_t t = 0; t < a.num_tokens; ++t) {
      const double x = a.x[t * a.x_token_stride + h * a.x_head_stride + r];
      double* sum = &sums[static_cast<size_t>(t * a.w.cols)];
      for (int64_t c = 0; c < a.w.cols; ++c) sum[c] += x * row[c];
    }
  }
  for (int64_t t = 0; t < a.num_tokens; ++t) {
    float* y = a.y + t * a.y_token_stride + h * a.y_head_stride;
    for (int64_t c = 0; c < a.w.cols; ++c) {
      y[c] = static_cast<float>(sums[static_cast<size_t>(t * a.w.cols + c)]);
    }
  }
}

}  // namespace

void per_head_linear_reference(KernelContext& context, const PerHeadLinearArgs& a) {
  context.pool().run(a.num_heads, [&](int64_t h, int thread) {
    float* row = context.scratch(thread, 0, a.w.cols);
    a.transposed ? head_transposed(a, h, row) : head_forward(a, h, row);
  });
}

}  // namespace tamis
