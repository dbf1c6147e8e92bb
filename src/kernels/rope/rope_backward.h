// The gradient of rope: the rotation is orthogonal up to the table's scaling, so a gradient turns
// back by the same angle: (da, db) <- (da cos + db sin, db cos - da sin). In place. Also the
// forward rotation, for gradients checked in double.
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/rope/rope.h"

namespace tamis {

template <typename T>
struct RopeTurnArgs {
  T* x = nullptr;  // turned in place: dims [0, dim) of every head
  int64_t token_stride = 0, head_stride = 0;
  int64_t tokens = 0, heads = 0, dim = 0;
  RopeLayout layout = RopeLayout::kInterleaved;
  const T* cos = nullptr;  // [tokens, dim/2]
  const T* sin = nullptr;
  bool back = true;  // false: the forward rotation
};

template <typename T>
void rope_turn(KernelContext& context, const RopeTurnArgs<T>& args);

}  // namespace tamis
