// The Sylvester Hadamard rotation of the FP8 indexer: y = H x * n^-1/2, n a power of two, float32
// inside, the result rounded to bf16 when asked. In place.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct HadamardArgs {
  float* x = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  bool round_bf16 = false;
};

void hadamard(KernelContext& context, const HadamardArgs& args);

}  // namespace tamis
