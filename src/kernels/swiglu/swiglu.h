// y = silu(gate) * up, silu(x) = x / (1 + e^-x). float32; y may be gate.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct SwigluArgs {
  const float* gate = nullptr;  // [rows, width]
  const float* up = nullptr;    // [rows, width]
  int64_t rows = 0, width = 0;
  float* y = nullptr;  // [rows, width]
};

void swiglu(KernelContext& context, const SwigluArgs& args);

}  // namespace tamis
