// Rows of the embedding table as float: y[t] = W[ids[t]].
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/weight.h"

namespace tamis {

struct EmbeddingArgs {
  Weight w;              // [vocabulary (or a slice of it), width]
  int64_t first_id = 0;  // the id of row 0: ids outside the slice give -0, which adds nothing
  const int32_t* ids = nullptr;  // [tokens]
  int64_t tokens = 0;
  float* y = nullptr;  // [tokens, width]
};

void embedding(KernelContext& context, const EmbeddingArgs& args);

}  // namespace tamis
