#include <vector>

#include "kernels/linear/linear_impl.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

void linear_reference(KernelContext& context, const LinearArgs& a) {
  context.pool().run(a.w.rows, [&](int64_t r, int thread) {
    float* w = context.scratch(thread, 0, a.w.cols);
    dequantize_row(a.w, r, 0, a.w.cols, w);
    for (int64_t m = 0; m < a.m; ++m) {
      const float* x = a.x + m * a.x_stride;
      double sum = 0;
      for (int64_t c = 0; c < a.w.cols; ++c) sum += static_cast<double>(w[c]) * x[c];
      a.y[m * a.y_stride + r] = static_cast<float>(sum);
    }
  });
}

}  // namespace

void linears_reference(KernelContext& context, const std::span<const LinearArgs>& args) {
  for (const LinearArgs& a : args) linear_reference(context, a);
}

void linear_fp8_reference(KernelContext& context, const LinearFp8Args& args) {
  const LinearArgs& a = args.base;
  const int64_t cols = a.w.cols, blocks = (cols + kFp8Block - 1) / kFp8Block;
  std::vector<uint8_t> q(static_cast<size_t>(a.m * cols));
  std::vector<float> x(static_cast<size_t>(a.m * cols)), s(static_cast<size_t>(a.m * blocks));
  for (int64_t m = 0; m < a.m; ++m) {
    act_quant_row(a.x + m * a.x_stride, cols, args.ue8m0, &q[static_cast<size_t>(m * cols)],
                  &s[static_cast<size_t>(m * blocks)]);
  }
  for (size_t i = 0; i < q.size(); ++i) x[i] = e4m3_to_float(q[i]);
  const auto* scales = reinterpret_cast<const float*>(a.w.scales);
  context.pool().run(a.w.rows, [&](int64_t r, int thread) {
    float* w = context.scratch(thread, 0, cols);
    const auto* bytes = reinterpret_cast<const uint8_t*>(a.w.data + r * a.w.row_bytes);
    for (int64_t c = 0; c < cols; ++c) w[c] = e4m3_to_float(bytes[c]);
    const float* s_w =
        scales + (r + a.w.row_offset) / kFp8Block * a.w.scale_stride + a.w.col_offset / kFp8Block;
    for (int64_t m = 0; m < a.m; ++m) {
      const float* xm = &x[static_cast<size_t>(m * cols)];
      float sum = 0;
      for (int64_t b = 0; b < blocks; ++b) {
        double block = 0;
        for (int64_t c = b * kFp8Block; c < std::min(cols, (b + 1) * kFp8Block); ++c) {
          block += static_cast<double>(w[c]) * xm[c];
        }
        sum += static_cast<float>(block) * (s[static_cast<size_t>(m * blocks + b)] * s_w[b]);
      }
      a.y[m * a.y_stride + r] = sum;
    }
  });
}

}  // namespace tamis
