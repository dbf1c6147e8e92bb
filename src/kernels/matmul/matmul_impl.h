// The implementations of matmul.
#pragma once

#include "kernels/matmul/matmul.h"

namespace tamis {

template <typename T>
void matmuls_reference(KernelContext& context, const std::span<const MatmulArgs<T>>& args);
void matmuls_simd(KernelContext& context, const std::span<const MatmulArgs<float>>& args);

}  // namespace tamis
