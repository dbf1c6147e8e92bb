#include "kernels/hadamard/hadamard.h"

#include <bit>
#include <cmath>
#include <string>

#include "base/error.h"
#include "kernels/hadamard/hadamard_impl.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

void transform(float* x, int64_t n) {
  for (int64_t step = 1; step < n; step *= 2) {
    for (int64_t begin = 0; begin < n; begin += 2 * step) {
      for (int64_t i = begin; i < begin + step; ++i) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
    }
  }
}

void hadamard_reference(KernelContext& context, const HadamardArgs& a) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.width));
  context.pool().run(a.rows, [&](int64_t r, int) {
    float* x = a.x + r * a.width;
    transform(x, a.width);
    for (int64_t i = 0; i < a.width; ++i) {
      x[i] *= scale;
      if (a.round_bf16) x[i] = round_to_bf16(x[i]);
    }
  });
}

constexpr Implementation<HadamardArgs> kList[] = {
    {"cuda", hadamard_cuda_supports, hadamard_cuda},
    {"reference", [](const HadamardArgs&) { return true; }, hadamard_reference},
};

}  // namespace

void hadamard(KernelContext& context, const HadamardArgs& args) {
  if (args.width < 1 || !std::has_single_bit(static_cast<uint64_t>(args.width))) {
    throw UsageError("[hadamard] width: got " + std::to_string(args.width) +
                     ", want a power of two");
  }
  dispatch<HadamardArgs>(context, "hadamard", kList, args);
}

}  // namespace tamis
