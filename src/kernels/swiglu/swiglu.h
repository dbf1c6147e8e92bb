// y = silu(gate) * up, silu(x) = x / (1 + e^-x). float32; y may be gate.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tamis {

struct SwigluArgs {
  const float* gate = nullptr;  // [rows, width]
  const float* up = nullptr;    // [rows, width]
  int64_t rows = 0, width = 0;
  float* y = nullptr;          // [rows, width]
  uint16_t* y_bf16 = nullptr;  // the same rounded to bf16, and y is not written; null: y
};

void swiglu(KernelContext& context, const SwigluArgs& args);
// Several that do not depend on each other.
void swiglus(KernelContext& context, std::span<const SwigluArgs> args);

}  // namespace tamis
