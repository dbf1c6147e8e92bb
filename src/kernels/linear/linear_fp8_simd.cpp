// linear_fp8 on the vector code of linear: x is quantised and at once dequantised, x' = q_x * s_x,
// and multiplied by the dequantised weight. Against the formula, s_x and s_w move from the block's
// sum into its factors, one rounding each: nothing for power-of-two scales, and covered by the
// bound of a float32 sum for others.
#include <algorithm>
#include <array>

#include "kernels/linear/linear_impl.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

constexpr int kQuantisedSlot = 4;  // linear itself uses slots 0 to 3

void requantise(const float* x, int64_t n, bool ue8m0, float* out) {
  std::array<uint8_t, kFp8Block> q;
  for (int64_t begin = 0; begin < n; begin += kFp8Block) {
    const int64_t count = std::min(kFp8Block, n - begin);
    float scale;
    act_quant_row(x + begin, count, ue8m0, q.data(), &scale);
    for (int64_t i = 0; i < count; ++i) {
      out[begin + i] = e4m3_to_float(q[static_cast<size_t>(i)]) * scale;
    }
  }
}

}  // namespace

void linear_fp8_simd(KernelContext& context, const LinearFp8Args& args) {
  LinearArgs a = args.base;
  const int64_t cols = a.w.cols;
  float* x = context.scratch(0, kQuantisedSlot, a.m * cols);
  context.pool().run(a.m, [&](int64_t m, int) {
    requantise(a.x + m * a.x_stride, cols, args.ue8m0, x + m * cols);
  });
  a.x = x;
  a.x_stride = cols;
  linears_simd(context, std::span<const LinearArgs>(&a, 1));
}

}  // namespace tamis
