// The implementations of matmul and grouped_matmul.
#pragma once

#include "kernels/matmul/grouped_matmul.h"
#include "kernels/matmul/matmul.h"

namespace tamis {

// Products with fewer rows or columns stay in float32.
inline constexpr int64_t kNarrowProduct = 64;

template <typename T>
void matmuls_reference(KernelContext& context, const std::span<const MatmulArgs<T>>& args);
void matmuls_simd(KernelContext& context, const std::span<const MatmulArgs<float>>& args);
void matmuls_cuda(KernelContext& context, const std::span<const MatmulArgs<float>>& args);
void matmuls_bf16_cuda(KernelContext& context, const std::span<const MatmulArgs<float>>& args);
void grouped_matmuls_cuda(KernelContext& context, std::span<const GroupedMatmulArgs<float>> args,
                          bool bf16);

}  // namespace tamis
