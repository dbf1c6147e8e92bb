#include "model/numerics.h"

#include "base/error.h"
#include "tensor/convert.h"

namespace tamis {

Precision precision_from_name(std::string_view name) {
  if (name == "exact") return Precision::kExact;
  if (name == "native") return Precision::kNative;
  throw UsageError("unknown precision '" + printable(name) + "': want exact or native");
}

void Numerics::project(KernelContext& context, std::span<const LinearArgs> args) const {
  if (!native()) return linears(context, args);
  for (const LinearArgs& a : args) {
    if (a.w.dtype == DType::kF8E4M3) {
      linear_fp8(context, {a, ue8m0});
    } else {
      linear(context, a);
    }
    round(a.y, a.m, a.w.rows, a.y_stride);
  }
}

void Numerics::round(float* x, int64_t rows, int64_t width, int64_t stride) const {
  if (!native()) return;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) x[r * stride + i] = round_to_bf16(x[r * stride + i]);
  }
}

}  // namespace tamis
