#include "kernels/swiglu/swiglu.h"

#include <cmath>

#include "kernels/simd/targets.h"
#include "kernels/swiglu/swiglu_impl.h"
#include "tensor/convert.h"

namespace tamis {

void swiglu_reference(KernelContext& context, const SwigluArgs& a) {
  context.pool().run(a.rows, [&](int64_t r, int) {
    for (int64_t i = r * a.width; i < (r + 1) * a.width; ++i) {
      const float y = a.gate[i] / (1.0f + std::exp(-a.gate[i])) * a.up[i];
      if (a.y_bf16 != nullptr) {
        a.y_bf16[i] = float_to_bf16(y);
      } else {
        a.y[i] = y;
      }
    }
  });
}

namespace {

constexpr Implementation<SwigluArgs> kList[] = {
    {"cuda", [](const SwigluArgs&) { return true; }, swiglu_cuda},
    {"simd", [](const SwigluArgs& a) { return vectors_available() && a.y_bf16 == nullptr; },
     swiglu_simd},
    {"reference", [](const SwigluArgs&) { return true; }, swiglu_reference},
};

}  // namespace

void swiglu(KernelContext& context, const SwigluArgs& args) {
  dispatch<SwigluArgs>(context, "swiglu", kList, args);
}

void swiglus(KernelContext& context, std::span<const SwigluArgs> args) {
  if (context.backend() == Backend::kCuda) {
    context.note("swiglu", "cuda");
    return swiglus_cuda(context, args);
  }
  for (const SwigluArgs& a : args) swiglu(context, a);
}

}  // namespace tamis
