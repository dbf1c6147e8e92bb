// The implementations of mla_dense.
#pragma once

#include "kernels/mla_dense/mla_dense.h"

namespace tamis {

void mla_dense_reference(KernelContext& context, const MlaDenseArgs& args);
bool mla_dense_cuda_supports(const MlaDenseArgs& args);
void mla_dense_cuda(KernelContext& context, const MlaDenseArgs& args);
// On the tensor cores, with round_bf16.
bool mla_dense_mma_supports(const MlaDenseArgs& args);
void mla_dense_mma_cuda(KernelContext& context, const MlaDenseArgs& args);
void mla_dense_simd(KernelContext& context, const MlaDenseArgs& args);

}  // namespace tamis
